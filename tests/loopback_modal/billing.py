"""`Workspace.billing.rates()`: a table given by the test; without one the call is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb


@dataclass(slots=True)
class Billing:
    """`rates` is None for a workspace whose members may not see its billing."""

    rates: Mapping[str, str] | None

    async def WorkspaceBillingRates(
        self, request: pb.WorkspaceBillingRatesRequest, caller: str
    ) -> pb.WorkspaceBillingRatesResponse:
        if self.rates is None:
            message = "You do not have permission to view the billing of workspace 'loopback'"
            raise GRPCError(Status.PERMISSION_DENIED, message)
        formatted = "\n".join(f"{name}: {rate}" for name, rate in self.rates.items())
        return pb.WorkspaceBillingRatesResponse(rates=self.rates, formatted=formatted)

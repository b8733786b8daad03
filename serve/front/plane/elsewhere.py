"""Whether a request that a gateway turned away had better be asked of another one."""

from serve.front.ports import House
from serve.front.relay import labels
from serve.pool.replicas import Replica
from serve.pool.routing import Wanted


def is_worth_it(
    house: House, status: int, replica: Replica, wanted: Wanted, session: bytes | None
) -> bool:
    """Whether it may be answered elsewhere, or later here, after this replica said `status`.

    The only one is taken out if it is cold, so that the request is held until it is not.
    """
    if house.router.pick(wanted, session, replica) is not replica:
        return True
    if status == labels.COLD and house.pool.can_wake:
        house.pool.failed(replica, "it says that no engine is ready there")
        return True
    return False

"""From the bytes of a request to the bytes of its answer. Pure, and lean: benchmarks lean on it.

The shapes and the wording are vLLM 0.32's. A word is a token; a prompt also pays one for each
message. Ids and replies come from a digest of messages, seed and weights: equal requests get equal
bytes. A request for nothing special is answered here; the others' answers are made token by token.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import orjson

from serve.testing import asks, plain, tools
from serve.testing.forms import CHAT, TEXT, Form
from serve.testing.generation import Ask, Finished, Generation, finish
from serve.testing.prefix_cache import PrefixCache
from serve.testing.refusals import Refusal, decode, too_long, unknown_model
from serve.testing.stats import Stats
from serve.testing.structured import NotUnderstood, matching
from serve.testing.tokens import WORDS
from serve.testing.weights import BOOT, Served, Weights

Reply = str | Sequence[str] | Callable[[dict[str, Any]], str]
"""What to reply: always this, one of these by digest, or what the function makes of the request.

A function finds the name of the weights that answer under `_weights`.
"""

_SPECIAL: Final = frozenset(
    "return_token_ids logprobs top_logprobs prompt_logprobs tools tool_choice".split()
)
"""Fields of requests whose answers are made token by token."""
_VERSIONED_TOKENS: Final = 2
_NONE: Final[dict[str, Any]] = {}


class Answerer:
    """Answers the requests for one model and its adapters."""

    def __init__(
        self,
        reply: Reply,
        *,
        model: str,
        max_model_len: int,
        versioned: bool = False,
        served: Served | None = None,
        cache: PrefixCache | None = None,
        stats: Stats | None = None,
    ) -> None:
        self.model = model
        self.max_model_len = max_model_len
        self._served = served or Served(model=model)
        self._cache = cache
        self._stats = stats or Stats()
        self._versioned = versioned
        self._has_plain = cache is None and not versioned
        self._encoded_model = orjson.dumps(model)
        self._choices = (reply,) if isinstance(reply, str) else reply
        if not callable(self._choices) and not self._choices:
            raise ValueError("FakeEngine needs at least one reply")

    def answer(self, body: bytes, *, chat: bool) -> tuple[bytes, bool]:
        """Return the answer's body and whether it is a stream of events; raise Refusal."""
        request = decode(body)
        if (
            self._has_plain
            and _SPECIAL.isdisjoint(request)
            and self._served.is_boot
            and request.get("model", self.model) == self.model
            and (chat or not isinstance(request.get("prompt"), list))
            and not (request.get("stream_options") or _NONE).get("continuous_usage_stats")
        ):
            return self._plain(request, chat=chat)
        return self.complete(CHAT if chat else TEXT, request)

    def complete(self, form: Form, request: dict[str, Any]) -> tuple[bytes, bool]:
        """Return the whole answer at once, and whether it is a stream; raise Refusal."""
        form, made = self.begin(form, request)
        events = [form.opening(made)] if made.ask.stream else []
        while not made.is_over:
            start = len(made.pieces)
            made.step()
            if made.ask.stream:
                events.append(form.event(made, start))
        self._stats.tokens_made += len(made.pieces)
        self.ended(made)
        if not made.ask.stream:
            return form.whole(made), False
        return b"".join((*events, form.closing(made))), True

    def begin(self, form: Form, request: dict[str, Any]) -> tuple[Form, Generation]:
        """Return an answer to be made step by step, and the form it then has; raise Refusal."""
        if form is CHAT and tools.is_wanted(request):
            form = tools.TOOL_CALL
        ask = form.read(request)
        model = ask.model or self.model
        weights = self._served.weights_of(model)
        if weights is None:
            raise unknown_model(model, self.model)
        ask = replace(ask, model=model)
        asks.check(request.get("sampling_params") or request, self.max_model_len)
        if len(ask.prompt_ids) >= self.max_model_len:
            raise too_long(self.max_model_len)
        plan = partial(self._plan, ask, is_call=form is tools.TOOL_CALL)
        digest = _digest(ask.subject, ask.seed, weights)
        made = Generation(ask, self._served, plan, digest)
        if self._cache is not None:
            salt = self._salt(made)
            made.cached_tokens = self._cache.query(ask.prompt_ids, salt)
            self._cache.keep(ask.prompt_ids, salt)
        return form, made

    def ended(self, made: Generation) -> None:
        """Keep the tokens of an answer that is over in the cache."""
        if self._cache is not None:
            self._cache.keep(made.ask.prompt_ids + made.ids(), self._salt(made))

    def _plain(self, request: dict[str, Any], *, chat: bool) -> tuple[bytes, bool]:
        if chat:
            subject = asks.chat_subject(request)
            marks = len(request["messages"]) + subject.count(b'"role":"assistant"')
        else:
            subject = asks.text_subject(request)
            marks = 0
        asks.check(request, self.max_model_len)
        prompt_tokens = subject.count(b" ") + subject.count(b"\\n") + 1 + marks
        room = self.max_model_len - prompt_tokens
        if room <= 0:
            raise too_long(self.max_model_len)
        digest = _digest(subject, request.get("seed") or 0, BOOT)
        text = self._reply(request, int(digest, 16), BOOT, None)
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or room
        done = finish(text, min(limit, room), asks.stops(request), asks.keeps_stop(request))
        self._stats.tokens_made += len(done.pieces)
        id_, model = digest.encode(), self._encoded_model
        if not request.get("stream"):
            return plain.whole(done, id_, model, prompt_tokens, chat=chat), False
        shown = (request.get("stream_options") or {}).get("include_usage")
        counted = prompt_tokens if shown else None
        return plain.events(done, id_, model, counted, chat=chat), True

    def _plan(self, ask: Ask, weights: Weights, *, is_call: bool) -> Finished:
        """Say what these weights would make of a request."""
        text = self._rest(ask, weights) if ask.is_tokens else None
        if text is None:
            pick = int(_digest(ask.subject, ask.seed, weights), 16)
            text = self._reply(ask.request, pick, weights, ask.max_tokens)
        if is_call:
            text = tools.arguments(ask.request, text)
        room = self.max_model_len - len(ask.prompt_ids)
        done = finish(text, min(ask.max_tokens or room, room), ask.stops, ask.keep_stop)
        if is_call and ask.request["tool_choice"] == "required" and done.finish_reason == b"stop":
            done = replace(done, finish_reason=b"tool_calls")
        return done

    def _rest(self, ask: Ask, weights: Weights) -> str | None:
        """Return what follows if the prompt ends with a reply's beginning, the longest of them.

        So an answer that was cut goes on from its tokens, as a real model's does.
        """
        if self._versioned:
            begun = WORDS.ids(("weights", f" {weights.name}"))
            limit = ask.max_tokens or _VERSIONED_TOKENS
            return f" {weights.name}" * limit if ask.prompt_ids[-1] in begun else None
        choices = self._choices
        texts = (choices(ask.request),) if callable(choices) else choices
        longest, rest = 0, None
        for text in texts:
            pieces = finish(text, self.max_model_len, (), False).pieces
            ids = WORDS.ids(pieces)
            for made in range(min(len(ids), len(ask.prompt_ids) - 1), longest, -1):
                if ask.prompt_ids[-made:] == ids[:made]:
                    longest, rest = made, "".join(pieces[made:])
                    break
        return rest

    def _reply(
        self, request: dict[str, Any], pick: int, weights: Weights, limit: int | None
    ) -> str:
        choices = self._choices
        if self._versioned:
            text = _versioned(weights, limit or _VERSIONED_TOKENS)
        elif callable(choices):
            request["_weights"] = weights.name
            text = choices(request)
        else:
            text = choices[pick % len(choices)]
        wanted = request.get("structured_outputs")
        if wanted is None:
            return text
        try:
            return _structured(wanted, text, pick)
        except NotUnderstood as error:
            raise Refusal(f"Grammar error: {error}") from None

    def _salt(self, made: Generation) -> bytes:
        """Return what a prefix is shared by: an adapter's name and the client's own salt."""
        name = b"" if made.ask.model == self.model else made.ask.model.encode()
        return name + str(made.ask.request.get("cache_salt") or "").encode()


def _versioned(weights: Weights, tokens: int) -> str:
    """Return a reply of so many tokens, each of which says which weights made it."""
    return "weights" + f" {weights.name}" * (tokens - 1)


def _digest(subject: bytes, seed: int, weights: Weights) -> str:
    return blake2b(subject + b"%d" % seed + weights.salt, digest_size=8).hexdigest()


def _structured(wanted: dict[str, Any], text: str, pick: int) -> str:
    """Return the reply if it already has the wanted form, else something that has."""
    if choice := wanted.get("choice"):
        return text if text in choice else str(choice[pick % len(choice)])
    regex = wanted.get("regex")
    if regex is None:
        raise NotUnderstood(f"FakeEngine knows regex and choice, got {sorted(wanted)}")
    made = matching(regex, pick)
    return text if re.fullmatch(regex, text) else made

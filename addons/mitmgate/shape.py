"""Make long, low-value prompts shorter, answers bounded, and prefixes cacheable (policy: ``shape``).

Runs when it is settled that a request will be asked of a provider, and before it is known of which. The first rule that
matches acts:

    keep_last           the oldest rounds go; the system prompt, the last round and whole tool pairs stay
    max_output_tokens   no answer is longer than this
    mark_cacheable      Anthropic's prompt cache is told where stable prefixes end
    dedupe              what stood before is named, not said again
    summarize           a summary stands in place of the oldest rounds; a target makes it, and that call has its own row

Promises: only bodies that are understood are changed, and in them only what the rule names; a signed body never is
(SigV4; signed or encrypted thinking, unless only the answer is bounded). What cannot be shaped goes on as it came, and
its row says why: no request is refused here. The row has the tokens before and after, the answer ``cf-aig-route``.
"""

import json
from collections.abc import Awaitable, Sequence

from mitmgate.dialects.inflate import inflater
from mitmgate.exchange import Event, Exchange
from mitmgate.fields import Get, fields_of
from mitmgate.inner import CHAT, Ask
from mitmgate.policy import Policy, values
from mitmgate.policy.match import Rules, acts, shadows
from mitmgate.policy.values import KeepLast, MaxOutput, Summarize
from mitmgate.seals import seal_of, thread_of
from mitmgate.shape_changes import (
    Change,
    Left,
    Measure,
    cut_of,
    dedupe,
    keep_last,
    mark_cacheable,
    max_output,
    summarize,
    summarized,
    takes_newer,
)
from mitmgate.shape_summary import Summaries, request, summary_in, transcripts
from mitmgate.shape_text import edited, placed
from mitmgate.shape_turns import Talk, Turn, talk_of
from mitmgate.usage import is_signed

GENERATES = frozenset({"chat", "text_completion", "generate_content"})
"""Operations that have a prompt to shorten and an answer to bound."""

SHORTENS = frozenset({"keep_last", "dedupe", "summarize"})
"""Changes that the row gives the tokens of."""


class Shape:
    name = "mitmgate.shape"

    def __init__(self, policy: Policy, ask: Ask, summaries: Summaries) -> None:
        self.policy, self.ask, self.summaries = policy, ask, summaries
        self.rules = Rules(policy.shape)
        self.idle = not policy.shape
        self.models = {
            deployment: model for target in policy.targets.values() for model, deployment in target.deployments.items()
        }
        """Deployment -> the model that it is."""

    def admit(self, x: Exchange) -> Awaitable[None] | None:
        """Let the rule that matches change *x*; what is awaited is a summary."""
        if self.idle or x.operation not in GENERATES:
            return None
        get = fields_of(x)
        rules = self.rules.likely(get)
        self._note_shadows(x, rules, get)
        rule = acts(rules, get)
        return self._act(x, rule) if rule else None

    def _act(self, x: Exchange, rule: values.Shape) -> Awaitable[None] | None:
        talk = self._talk(x, rule)
        if isinstance(talk, Talk) and isinstance(rule.then, Summarize):
            return self._summarize(x, rule, rule.then, talk)
        self._make(x, rule, self._change(x, rule, talk) if isinstance(talk, Talk) else talk)
        return None

    # -- what would be changed, and how

    def _talk(self, x: Exchange, rule: values.Shape) -> Talk | Left:
        """Return the conversation in *x*, or why *rule* may not change it."""
        if is_signed(x):
            return Left("its body is signed")
        if x.streamed_upload:
            return Left("its body is still on its way")
        if x.legs:
            return Left("it brings its own list of places")
        if not isinstance(x.json, dict) or x.dialect is None:
            return Left("its body is no JSON object that was read")
        talk = talk_of(x.dialect.name, x.path, x.json)
        if talk is None:
            return Left("its API is not one whose turns are known")
        seal = None if isinstance(rule.then, MaxOutput) else thread_of(talk.body) or seal_of(talk.body)
        return Left(seal) if seal else talk

    def _change(self, x: Exchange, rule: values.Shape, talk: Talk) -> Change | Left | None:
        """Return what *rule* changes; None where there is nothing to do. Not for ``summarize``."""
        match rule.then:
            case KeepLast(tokens):
                return keep_last(talk, tokens, _measure(x, talk)) if _is_longer(x, tokens) else None
            case MaxOutput(tokens):
                return max_output(talk, tokens, self._takes_newer(x))
            case "mark_cacheable":
                return mark_cacheable(talk)
            case _:
                return dedupe(talk)

    def _takes_newer(self, x: Exchange) -> bool:
        model = (x.downgrade.model if x.downgrade else None) or x.request.model or ""
        return x.provider is not None and takes_newer(x.provider.slug, self.models.get(model, model))

    # -- changing it

    def _make(self, x: Exchange, rule: values.Shape, change: Change | Left | None) -> None:
        """Make *change*, and tell of it."""
        if isinstance(change, Change):
            change = self._rewrite(x, rule, change)
        if isinstance(change, Left):
            x.notes.append(f"shape {rule.name}: left alone: {change.why}")

    def _rewrite(self, x: Exchange, rule: values.Shape, change: Change) -> Left | None:
        text = _text_of(x)
        if x.dialect is None or text is None:
            return Left("its body is no text")
        try:
            text = edited(text, placed(change.edits))
            parsed = json.loads(text)
        except (ValueError, IndexError, RecursionError) as e:
            return Left(f"a place in its body cannot be found: {e}")
        before, x.request = x.request, x.dialect.read_request(x.path, parsed)
        x.rewrite(text.encode("utf-8", "surrogatepass"), parsed)
        action, detail = _action(rule), change.detail
        if action in SHORTENS:
            x.prompt_tokens = before.input_tokens_estimate, x.request.input_tokens_estimate
            detail = f"{x.prompt_tokens[0]:,} -> {x.prompt_tokens[1]:,} tokens, {detail}"
        x.events.append(Event("shape", rule.name, action, detail=detail))
        x.route_notes.append(f"shaped; rule={rule.name}")
        return None

    # -- summarize

    def _summarize(self, x: Exchange, rule: values.Shape, then: Summarize, talk: Talk) -> Awaitable[None] | None:
        if not _is_longer(x, then.keep_last):
            return None
        cut = cut_of(talk, then.keep_last, _measure(x, talk))
        if isinstance(cut, Left):
            self._make(x, rule, cut)
            return None
        return self._put_summary(x, rule, then, talk, cut)

    async def _put_summary(self, x: Exchange, rule: values.Shape, then: Summarize, talk: Talk, cut: int) -> None:
        if x.dialect is None:
            return
        model = self._model_of(x, then)
        newer = takes_newer(self.policy.targets[then.target].provider, model)

        async def write(question: str) -> str | None:
            body = request(model, newer, question)
            return summary_in(*await self.ask(x, then.target, CHAT, body, f"shape {rule.name}"))

        summary = await self.summaries.of((then.target, model), transcripts(x.dialect, talk, cut), write)
        why = Left(f"{then.target} gave no summary")
        self._make(x, rule, summarize(talk, cut, summary) if summary else why)

    def _model_of(self, x: Exchange, then: Summarize) -> str | None:
        """Return the rule's model; else the request's, unless the target has its own deployments and none of that."""
        deployments = self.policy.targets[then.target].deployments
        asked = self.models.get(x.request.model or "", x.request.model)
        if then.model or not deployments or asked in deployments:
            return then.model or asked
        return next(iter(deployments))

    # -- what would have been

    def _note_shadows(self, x: Exchange, rules: Sequence[values.Shape], get: Get) -> None:
        """Record what rules with ``shadow: true`` would have done; a summary is not asked for."""
        for rule in shadows(rules, get):
            found = self._would(x, rule)
            if isinstance(found, Left):
                x.notes.append(f"shape {rule.name}: would be left alone: {found.why}")
            elif found:
                x.events.append(Event("shape", rule.name, _action(rule), shadow=True, detail=f"would be: {found}"))

    def _would(self, x: Exchange, rule: values.Shape) -> str | Left | None:
        talk = self._talk(x, rule)
        if isinstance(talk, Left):
            return talk
        if isinstance(rule.then, Summarize):
            if not _is_longer(x, rule.then.keep_last):
                return None
            cut = cut_of(talk, rule.then.keep_last, _measure(x, talk))
            return cut if isinstance(cut, Left) else summarized(talk, cut)
        change = self._change(x, rule, talk)
        return change.detail if isinstance(change, Change) else change


def _action(rule: values.Shape) -> str:
    match rule.then:
        case KeepLast():
            return "keep_last"
        case MaxOutput():
            return "max_output_tokens"
        case Summarize():
            return "summarize"
        case word:
            return word


def _is_longer(x: Exchange, tokens: int) -> bool:
    return x.request.input_tokens_estimate > tokens


def _measure(x: Exchange, talk: Talk) -> Measure:
    """Return how the request is measured with other turns in place of its own."""

    def measure(turns: Sequence[Turn]) -> int:
        return x.dialect.read_request(x.path, talk.saying(turns)).input_tokens_estimate if x.dialect else 0

    return measure


def _text_of(x: Exchange) -> str | None:
    """Return the body of *x* as it stands, its content coding undone; None where that cannot be."""
    body = x.asked_body or b""
    if x.is_coded:
        undo = inflater(x.headers["content-encoding"])
        if undo is None:
            return None
        body = undo.feed(body) + undo.end()
    try:
        return body.decode(json.detect_encoding(body), "surrogatepass")
    except UnicodeDecodeError:
        return None

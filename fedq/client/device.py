"""Device: a requester's handle on one device's pair: find values, put messages together, send them.

Nothing here waits; `fetch` does. A call outside ``with device.batch():`` is a message of its own,
sent when the call returns; inside, all of it is one message (thousands of actions: several), sent
at its end or when a value is waited for, and never if the block raises.

A block with a token is the same each time it is done, in any process: its ids come from the token
and the order of what it does, never from what this process knows or has in memory; each message of
it is sent once; what it made and asked for stays, so that it comes again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedq import ids
from fedq.client import look, sending
from fedq.client.draft import Draft
from fedq.client.pending import Pending, merge
from fedq.client.pointer_plans import PointerPlan
from fedq.client.pointers import PointerTensor, raw_tensor
from fedq.client.rest import Rest
from fedq.client.tried import Tried
from fedq.errors import BadFile, UnknownValue, Unreachable, UsageError
from fedq.plan.codec import MAX_TENSORS, RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import Type
from fedq.plan.verify import verify
from fedq.queue.carrier import MOST_BYTES
from fedq.queue.message import Address, Message, Put, SendPlan, Verb
from fedq.queue.pair import Card, Catalog, Sealed, open_pair
from fedq.trust.keys import unseal

if TYPE_CHECKING:
    from fedq.client.session import Client
    from fedq.plan.plan import Plan

MANY_ACTIONS = 1000
"""A batch with more of them has Python's cycle collector rest until it is sent."""
KEEP_DAYS = 30.0
"""How long a device keeps a question, if its card does not say."""
GET_AT_MOST = MAX_TENSORS - 96
"""Values of one reply: it is a file, too."""


Wanted = Mapping[str, PointerTensor | None]
"""What is asked for, by id: values, or a plan."""


def _private(wanted: Wanted) -> set[str]:
    return {id_ for id_, p in wanted.items() if p is not None and p.private}


def _ask_apart(draft: Draft, wanted: Wanted, missing: Sequence[str]) -> None:
    """Ask for what waits for the owner's word apart from what does not."""
    pointers = {id_: p for id_ in missing if (p := wanted[id_]) is not None}
    owners = {id_ for id_, p in pointers.items() if p.owners}
    private = _private(pointers)
    for some in ([i for i in missing if i not in private], [i for i in missing if i in private]):
        for start in range(0, len(some), GET_AT_MOST):
            draft.ask(some[start : start + GET_AT_MOST], owners)


class Device:
    """A handle on a device: ``fq.Device("device_1")``.

    Args:
        client: who asks; by default the one of the roots found from here (`session.here`).

    Raises:
        UnknownDevice: no such device has a pair with this requester, or its key is not known.
    """

    def __init__(self, name: str, client: Client | None = None) -> None:
        if client is None:
            from fedq.client.session import here

            client = here()
        self.name, self.client = name, client
        durable = client.config.durability == "full"
        self.pair = open_pair(client.config.queue, name, client.name, durable=durable)
        self.key = client.trusted(name)
        self.number = client.outbox.pair(client.root, name, self.key.hex())
        self.tried = Tried(self.pair.carrier.path)
        self._most: tuple[tuple[int, ...] | None, int] = (None, MOST_BYTES)
        self._draft: Draft | None = None
        self.address = Address(name, self.key.hex(), client.root)
        self._sealed: dict[str, tuple[bytes, Any]] = {}
        """Of each kind: the file as it was read last, and what it holds."""
        self._plans: dict[str, PointerPlan] = {}
        self._sent: set[str] = set()
        self.pending = Pending()
        self._settled: list[Pending] = []
        self._rest = Rest()

    def __repr__(self) -> str:
        return f"Device({self.name!r})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Device) and (self.client, self.name) == (other.client, other.name)

    def __hash__(self) -> int:
        return hash((id(self.client), self.name))

    # -- what is there

    def is_asked(self, reply: str) -> bool:
        """Whether the owner is in this very process and is asked: nothing comes by waiting."""
        return False

    def catalog(self) -> Catalog:
        """What this requester may find there, signed by the device; read anew each time."""
        try:
            return self.sealed(Catalog)
        except FileNotFoundError:
            path = self.pair.carrier.path("catalog.json")
            raise Unreachable(f"{self.name} has written no catalog: {path} is not there") from None

    def sealed(self, what: type[Sealed]) -> Sealed:
        """The device's card, catalog or heartbeat as it stands.

        Raises:
            FileNotFoundError: there is none. BadFile: it is not the device's, not for this requester, or older
            than one that was read before, in whatever process.
        """
        raw = bytes(self.pair.read_bytes(what.KIND))
        last, found = self._sealed.get(what.KIND, (b"", None))
        if raw != last:
            found = unseal(what, raw, self.key, self.name, self.client.address)
            latest = self.client.outbox.latest(self.number, what.KIND)
            if found.count < latest:
                raise BadFile(
                    f"a {what.KIND} of {self.name} that is older than one read before: an old file was put back, or "
                    "the device was restored from a backup",
                    hint="ask its owner; until the device writes a new one, this one is ignored",
                )
            if found.count > latest:
                self.client.outbox.saw(self.number, what.KIND, found.count)
            self._sealed[what.KIND] = raw, found
        return found  # type: ignore[no-any-return]

    def find(self, ref: str) -> PointerTensor:
        """The one value with this tag or id.

        Args:
            ref: ``input_data``, ``#input_data``, 32 hex digits, or the first 6 and more of them;
                an id may be of the catalog or promised to this requester by the device.

        Raises:
            UnknownValue: there is none; lists the tags that are.
            Ambiguous: there are several; lists them.
        """
        return look.value(self, ref)

    def search(self, *texts: str) -> list[PointerTensor]:
        """Values whose tags or note contain each of the texts, in the catalog's order."""
        return look.search(self, texts)

    def plan(self, ref: str) -> PointerPlan:
        """A plan that was sent there: its name, id, or the first 6 digits of it.

        Raises:
            UnknownPlan: there is none; lists the names that are.
            Ambiguous: there are several.
        """
        return self._plans[ref] if ref in self._sent else look.plan(self, ref)

    # -- sending

    @property
    def lets_go(self) -> bool:
        """Whether values made now are dropped with their pointers: those under a token can be asked for again."""
        return self._draft is None or self._draft.token is None

    def new_id(self) -> str:
        """A fresh id; in a batch with a token, the next that it gives."""
        return self.client.new_id() if self._draft is None else self._draft.new_id()

    @contextlib.contextmanager
    def batch(self, *, token: str | None = None, ask_again: bool = False) -> Iterator[Device]:
        """All that is done with this device in the block is one message; blocks may be nested.

        From 1,000 calls on Python's cycle collector rests until they are sent.

        Args:
            token: a name for this very block. Doing the same under the same token gives the same
                ids and values and sends nothing twice, in any process, wherever the one before was
                cut off; also what is sent by waiting for a value inside it. So ``.get()`` in the
                block, or of what it made, leaves the value there until its message expires.

            ask_again: ask for the same anew, under new ids, since it was denied, expired or replaced: tags
                are looked up again. Without it, the token stands for what was asked last.

        Raises:
            Conflict: something else was asked for under this token.
        """
        if self._draft is not None and token is None:
            yield self
            return
        with self._block(self._new_draft(token, lasting=token is not None, again=ask_again)):
            yield self

    @contextlib.contextmanager
    def once(self, token: str) -> Iterator[Device]:
        """As `batch` with a token, to be sent once; what it makes can be taken away, and so may not come again."""
        with self._block(self._new_draft(token)):
            yield self

    @contextlib.contextmanager
    def _block(self, draft: Draft) -> Iterator[None]:
        if self._draft is not None:
            raise UsageError("a batch with a token cannot stand inside another batch")
        if draft.token is not None:
            self.settle()
        self._draft, self._settled = draft, []
        try:
            yield
            self.settle()
            if self._draft.asks or self._draft.actions:
                self._send(self._draft)
        except BaseException:
            if draft.token is not None:
                self.pending = Pending()  # the block done again makes them again, under the same ids
            raise
        finally:
            self._draft = None
            self._rest.end()

    def _send(self, draft: Draft) -> None:
        """Send it; if that fails before any of it was sent, the operations in it wait again."""
        settled, self._settled = self._settled, []
        try:
            sending.send(self, draft)
        except BaseException:
            for pending in reversed(() if draft.begun or draft.token is not None else settled):
                self.pending.put_back(pending)
            raise

    def _new_draft(self, token: str | None = None, *, lasting: bool = False, again: bool = False) -> Draft:
        c = self.client
        if token is None:
            return Draft(c.new_id(), c.new_id)
        if not ids.is_text(token):
            raise UsageError(f"{token[:40]!r} cannot be a token", hint="use 1 to 300 printable characters")
        times = c.outbox.times(self.number, token) + again
        more = (times,) if times else ()
        id_ = ids.derive("message", token, c.root, self.name, c.name, *more)
        return Draft(id_, c.new_id, token, block=id_, times=times, lasting=lasting)

    @property
    def lasting(self) -> bool:
        """Whether this is inside a block that can be done again: nothing that comes in it is taken away."""
        return self._draft is not None and self._draft.lasting

    @property
    def draft(self) -> Draft | None:
        """The batch's draft, if there is a batch."""
        if self._draft is not None and len(self._draft.actions) >= MANY_ACTIONS:
            self._rest.begin()
        return self._draft

    @contextlib.contextmanager
    def drafting(self) -> Iterator[Draft]:
        """The batch's draft, or one that is sent at the end of this block."""
        if self.draft is not None:
            yield self.draft
            return
        draft = self._new_draft()
        yield draft
        if draft.actions:
            sending.send(self, draft)

    def settle(self) -> None:
        """Turn the operations on pointers that wait into a plan and its run; sent now, or with the batch."""
        if not self.pending.steps:
            return
        if self._draft is None:
            with self.batch():
                return
        waiting, self.pending = self.pending, Pending()
        self._settled.append(waiting)
        if self._draft.token is not None:
            self._draft.operations += waiting.steps
        for steps, outputs in waiting.parts():
            file, args = merge(steps, outputs)
            self._draft.merged.update(outputs[:1])
            self.send_plan(file).run_as(args, outputs, steps[0].private)

    def flush(self) -> None:
        """Send what waits: operations on pointers, and what the batch holds so far."""
        self.settle()
        if self._draft is None or not (self._draft.actions or self._draft.operations):
            return
        if self._draft.token is not None:
            self._flush_once(self._draft)
            return
        draft, self._draft = self._draft, self._new_draft()
        try:
            self._send(draft)
        finally:
            self._rest.end()

    def _flush_once(self, draft: Draft) -> None:
        """The same at the same place of the block, always: plans alone wait, since they may be there already."""
        if not draft.asks:
            return
        try:
            self._send(draft)
        finally:
            if draft.begun:
                self._draft = draft.following()
            self._rest.end()

    def submit(
        self,
        actions: Sequence[Verb],
        tensors: Mapping[str, RawTensor] | None = None,
        *,
        types: Mapping[str, Type | None] | None = None,
        token: str | None = None,
        expires_s: float = sending.EXPIRES_S,
    ) -> Message:
        """Send these actions at once, as a message of their own; of several, where too large, the first."""
        draft = self._new_draft(token)
        draft.actions, draft.tensors, draft.types = list(actions), dict(tensors or {}), dict(types or {})
        return sending.send(self, draft, expires_s)

    # -- values and plans

    def send(self, tensor: Any, tag: str | None = None, *, note: str = "") -> PointerTensor:
        """Store a tensor there, perhaps with a tag that `find` knows; it stays this requester's own.

        Args:
            note: for `search`; words with ``#`` in it are further tags.
        """
        if tag is not None and not ids.is_text(tag := tag.removeprefix("#")):
            raise UsageError("a tag has 1 to 300 printable characters")
        raw = self.hold(raw_tensor(tensor))
        with self.drafting() as draft:
            id_, type_ = draft.new_id(), Type(raw.dtype, raw.shape)
            draft.actions.append(Put(id_, draft.inline(raw).name, tag, note))
            draft.types[id_] = type_
        return PointerTensor(self, id_, type_, tag, mine=self.lets_go)

    def hold(self, raw: RawTensor) -> RawTensor:
        """The tensor as it is now: a batch is sent later, so it keeps a copy."""
        return raw if self._draft is None else RawTensor(raw.dtype, raw.shape, bytes(raw.data))

    def send_plan(self, plan: Plan | PlanFile) -> PointerPlan:
        """Store a plan there, with its state as it is now; one that is there is not sent again.

        Raises:
            NotBuilt: it was not recorded yet.
            NotAllowed: it is a file whose graph no device takes.
        """
        file = plan if isinstance(plan, PlanFile) else plan.file()
        pointer = self._plans.setdefault(file.id, PointerPlan(self, file.id, file.graph, file.about))
        if file.id in self._sent:
            return pointer
        if self.client.history.plan(self.number, file.id) is not None:
            self._sent.add(file.id)
        else:
            if isinstance(plan, PlanFile):
                verify(file.graph)
            with self.drafting() as draft:
                sent = [a.id for a in draft.actions if isinstance(a, SendPlan)]
                if file.id not in sent:
                    names = (name for name, _ in file.graph.state)
                    state = {f"p{len(sent)}.{n}": self.hold(file.state[name]) for n, name in enumerate(names)}
                    draft.tensors.update(state)
                    draft.actions.append(SendPlan(file.id, file.graph, tuple(state), file.about))
        return pointer

    def forget_plan(self, id_: str) -> None:
        """The device says that a plan is not there, whatever was noted here: it is sent again when it is needed."""
        self._sent.discard(id_)
        self.client.history.forget_plan(self.number, id_)

    def ask(self, values: Iterable[PointerTensor]) -> dict[str, str]:
        """Ask for these values, those that were not asked for before, with one action.

        Returns:
            value id -> the reply it will come in. For one value made by the same message that
            is its own id.
        """
        wanted: Wanted = {p.address: p for p in values}
        if not self.pending.made.isdisjoint(wanted):
            with self.batch():
                self.settle()
                return self._ask(wanted)
        return self._ask(wanted)

    def ask_plan(self, id_: str) -> str:
        """Ask for a plan, if it was not asked for; the reply that its file will be. Sent at once."""
        replies = self._ask({id_: None})
        self.flush()
        return self.asked_last(replies, {id_: None})[id_]

    def asked_last(self, replies: dict[str, str], wanted: Wanted) -> dict[str, str]:
        """Where values come that were asked for and sent: in a block with a token, under which reply they last were.

        What a block asked for may be of no use any more when it is done again, since it was denied or
        expired: then it is asked for again, in a message that is no part of the block.
        """
        if self._draft is None or self._draft.token is None:
            return replies
        last = self._replies(replies, wanted)
        missing = [id_ for id_ in replies if id_ not in last]
        if missing:
            draft = self._new_draft()
            _ask_apart(draft, wanted, missing)
            sending.send(self, draft)
            last |= draft.replies
        return last

    def _replies(self, values: Collection[str], wanted: Wanted) -> dict[str, str]:
        """Where those of the values come that were asked for; a question is one for as long as the device keeps it."""
        private, now = _private(wanted), self.client.now()
        since = now - 86_400.0 * (self._keep_days() + 1) if private else now
        return self.client.outbox.replies(self.number, values, now, asked=private, since=since)

    def _keep_days(self) -> float:
        try:
            return self.sealed(Card).keep_days
        except (FileNotFoundError, BadFile):
            return KEEP_DAYS

    def most_bytes(self) -> int:
        """Bytes of the largest message that the device takes, as its card says."""
        mark = self.pair.carrier.mark("card.json")
        if mark is None or mark != self._most[0]:
            try:
                self._most = mark, self.sealed(Card).most_bytes
            except (FileNotFoundError, BadFile):
                return MOST_BYTES
        return self._most[1]

    def _ask_once(self, draft: Draft, wanted: Wanted) -> dict[str, str]:
        """Ask for what this block did not ask for: what else this process knows is not the same in another."""
        _ask_apart(draft, wanted, [id_ for id_ in wanted if id_ not in draft.replies])
        return {id_: draft.replies[id_] for id_ in wanted}

    def _ask(self, wanted: Wanted) -> dict[str, str]:
        if self._draft is not None and self._draft.token is not None:
            return self._ask_once(self._draft, wanted)
        replies = self._replies(wanted, wanted)
        if self._draft is not None:
            replies |= self._draft.replies
        missing = [id_ for id_ in wanted if id_ not in replies]
        if missing:
            with self.drafting() as draft:
                _ask_apart(draft, wanted, missing)
                replies |= draft.replies
        return {id_: replies[id_] for id_ in wanted}

    def check_known(self, values: Iterable[PointerTensor]) -> None:
        """That these were promised, or are in the catalog; UnknownValue for one that can never come."""
        made = self._draft.types if self._draft is not None else {}
        others = {p.address for p in values} - made.keys() - self.pending.made
        strange = others - self.client.outbox.own(self.number, others)
        if strange:
            strange -= {e.id for e in self.catalog().values}
        for id_ in sorted(strange):
            look.by_id(self, id_)  # says so if it was taken away
            raise UnknownValue(
                f"{id_} was never promised by {self.name}, or is gone", hint="a batch that ends in an error is not sent"
            )

    def take(self, pointers: Sequence[PointerTensor], replies: Collection[str]) -> None:
        """These came: what this requester made is dropped by a later message, the rest only let go of."""
        outbox, came = self.client.outbox, [p.address for p in pointers]
        stay, kept = outbox.lasting(self.number, came, replies)
        own = outbox.own(self.number, came) - stay
        left = set(came) - stay
        whole = [r for r in replies if r not in kept and outbox.asked_in(self.number, r) <= left]
        outbox.take(self.number, own, whole)
        for p in pointers:
            p.taken = p.address in own

"""The ledger undoes strictly last in, first out, keeps its hands off foreign objects, and names what went missing."""

import types
import warnings

import pytest
from torch import nn

from fastdit.core.ledger import PatchLedger


class Thing:
    colour = "class"

    def paint(self):
        return "painted"


class Other(Thing):
    pass


def test_attributes_come_back_by_identity():
    thing, ledger = Thing(), PatchLedger()
    thing.own = first = object()
    before = dict(vars(thing))
    ledger.set_attribute(thing, "own", "ours")
    ledger.set_attribute(thing, "colour", "ours")  # hides a class attribute
    ledger.set_attribute(thing, "paint", lambda: "ours")
    ledger.set_attribute(thing, "new", None)  # None is a value like any other
    assert (thing.own, thing.colour, thing.paint(), thing.new) == ("ours", "ours", "ours", None)
    assert len(ledger) == 4
    ledger.verify()
    ledger.undo()
    assert vars(thing) == before and thing.own is first
    assert (thing.colour, thing.paint()) == ("class", "painted") and not hasattr(thing, "new")
    assert len(ledger) == 0
    ledger.undo()  # nothing left: nothing happens


def test_last_in_first_out():
    thing, ledger, order = Thing(), PatchLedger(), []
    for value in ("a", "b", "c"):
        ledger.set_attribute(thing, "own", value)

    class Handle:
        id = 1
        hooks_dict_ref = staticmethod(lambda: {1: None})

        def remove(self):
            order.append(thing.own)

    ledger.add_hook(Handle(), "hook")
    ledger.set_attribute(thing, "own", "d")
    ledger.undo()
    assert order == ["c"]  # the hook went after "d" and before "c", "b", "a"
    assert not hasattr(thing, "own")


def test_a_foreign_object_stays_with_a_warning():
    thing, ledger = Thing(), PatchLedger()
    ledger.set_attribute(thing, "own", "ours", "thing.own")
    ledger.set_attribute(thing, "other", "ours")
    thing.own = "theirs"
    with pytest.warns(UserWarning, match=r"thing\.own was replaced by something else after fastdit; it stays"):
        ledger.undo()
    assert thing.own == "theirs" and not hasattr(thing, "other")


def test_a_foreign_deletion_is_not_undone_into_an_error():
    thing, ledger = Thing(), PatchLedger()
    ledger.set_attribute(thing, "own", "ours")
    del thing.own
    with pytest.warns(UserWarning, match="it stays"):
        ledger.undo()
    assert not hasattr(thing, "own")


def test_verify_names_the_object():
    thing, ledger = Thing(), PatchLedger()
    ledger.set_attribute(thing, "kept", 1)
    ledger.set_attribute(thing, "own", 2, "blocks.1.attn1.processor")
    ledger.set_attribute(thing, "default_name", 3)
    thing.own = "theirs"
    with pytest.raises(RuntimeError, match=r"blocks\.1\.attn1\.processor no longer holds .* set_methods"):
        ledger.verify()
    thing.own, thing.default_name = 2, None
    with pytest.raises(RuntimeError, match=r"Thing\.default_name"):
        ledger.verify()


def test_classes():
    thing, ledger = Thing(), PatchLedger()
    ledger.set_class(thing, Other)
    assert type(thing) is Other
    ledger.verify()
    ledger.undo()
    assert type(thing) is Thing

    ledger.set_class(thing, Other)
    thing.__class__ = type("Third", (Thing,), {})
    with pytest.raises(RuntimeError, match="class of Thing"):
        ledger.verify()
    with pytest.warns(UserWarning, match="the class of Thing was changed"):
        ledger.undo()
    assert type(thing).__name__ == "Third"


def test_hooks_of_modules():
    module, ledger, calls = nn.Linear(2, 2), PatchLedger(), []
    before = {name: id(value) for name, value in vars(module).items()}
    handle = module.register_forward_pre_hook(lambda *_: calls.append(1))
    ledger.add_hook(handle, "linear's hook")
    ledger.verify()
    handle.remove()
    with pytest.raises(RuntimeError, match="linear's hook"):
        ledger.verify()
    ledger.undo()
    assert {name: id(value) for name, value in vars(module).items()} == before
    assert not module._forward_pre_hooks


def test_modules_in_a_module_attribute():
    """nn.Module keeps plain attributes in its __dict__: a forward on the instance goes without a trace."""
    module, ledger = nn.Linear(2, 2), PatchLedger()
    ledger.set_attribute(module, "forward", lambda x: x)
    assert "forward" in vars(module)
    ledger.undo()
    assert "forward" not in vars(module) and isinstance(module.forward, types.MethodType)


def test_undoing_warns_of_nothing_when_all_is_well():
    thing, ledger = Thing(), PatchLedger()
    ledger.set_attribute(thing, "own", float("nan"))  # compared by identity, not by ==
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ledger.undo()


def test_what_fails_to_be_undone_stays_and_is_tried_again():
    thing, ledger, tries = Thing(), PatchLedger(), []

    def put_back():
        tries.append(thing.own)
        if len(tries) < 3:
            raise RuntimeError("the source is gone")

    ledger.set_attribute(thing, "own", "a")
    ledger.record("weights", put_back)
    ledger.set_attribute(thing, "own", "b")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the source is gone"):
            ledger.undo()
        assert len(ledger) == 2 and thing.own == "a"  # what came after is undone, what came before is not
    ledger.undo()
    assert tries == ["a"] * 3 and len(ledger) == 0 and not hasattr(thing, "own")

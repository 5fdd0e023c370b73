"""Other people's attributes come back as they were, wherever they stood."""

from types import SimpleNamespace

import pytest

from course_utils.setup.patching import replaced


class Parent:
    def said(self):
        return "parent"


class Child(Parent):
    @staticmethod
    def alone():
        return "child"


def test_an_inherited_attribute_is_inherited_again():
    with replaced(Child, "said", lambda self: "replaced"):
        assert Child().said() == "replaced" and Parent().said() == "parent"
    assert Child().said() == "parent" and "said" not in vars(Child)


@pytest.mark.parametrize("value", [1, None])
def test_an_attribute_of_its_own_comes_back_also_after_an_error(value):
    owner = SimpleNamespace(setting=value)
    with pytest.raises(OSError, match="full"), replaced(owner, "setting", 2):
        assert owner.setting == 2
        raise OSError("full")
    assert owner.setting is value


def test_a_static_method_stays_one():
    with replaced(Child, "alone", lambda: "replaced"):
        pass
    assert isinstance(vars(Child)["alone"], staticmethod)


def test_a_name_that_a_library_no_longer_has_is_an_error():
    with pytest.raises(AttributeError, match="gone"), replaced(Child, "gone", 1):
        pass

"""A base model that is not there is said at once, or after one short question to the hub."""

import sys
from types import ModuleType

import pytest

from sidestep.errors import InputError
from sidestep.integrations.tuning.base import check_base


def hub(monkeypatch, answer, cached=None):
    """Put a stand-in for huggingface_hub in its place, whose question raises `answer`, and return what was asked."""
    asked = []
    errors = ModuleType("huggingface_hub.errors")
    for name in ("EntryNotFoundError", "HFValidationError", "RepositoryNotFoundError"):
        setattr(errors, name, type(name, (Exception,), {}))
    found = ModuleType("huggingface_hub")
    found.errors = errors
    found.try_to_load_from_cache = lambda base, file: cached
    found.hf_hub_url = lambda base, file: f"{base}/{file}"

    def question(url, timeout):
        asked.append((url, timeout))
        if answer:
            raise getattr(errors, answer, ConnectionError)("no way\nmore")

    found.get_hf_file_metadata = question
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_what_can_only_be_a_folder_is_never_asked_for(tmp_path, monkeypatch):
    asked = hub(monkeypatch, None)
    (tmp_path / "models" / "bert-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for missing in ("./x", "~/x", "a/b/c", "/no/x", "x/"):
        with pytest.raises(InputError, match="there is no folder"):
            check_base(missing)
    with pytest.raises(InputError, match="did you mean bert-tiny"):
        check_base("./models/bert-tny")
    check_base("models/bert-tiny")
    assert not asked


def test_a_name_whose_owner_is_a_folder_here_may_be_one_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models" / "bert-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = hub(monkeypatch, "RepositoryNotFoundError")
    with pytest.raises(InputError, match=r"there is no folder models/bert-tny here.*did you mean bert-tiny"):
        check_base("models/bert-tny")
    assert len(asked) == 1
    hub(monkeypatch, None)
    check_base("models/bert-other")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("RepositoryNotFoundError", "the hub has no model owner/name"),
        ("HFValidationError", "the hub has no model owner/name"),
        ("ConnectionError", r"the hub does not answer \(no way\)"),
    ],
)
def test_a_name_is_asked_for_once_and_shortly(monkeypatch, answer, said):
    asked = hub(monkeypatch, answer)
    with pytest.raises(InputError, match=said):
        check_base("owner/name")
    assert [url for url, _ in asked] == ["owner/name/config.json"]
    assert asked[0][1] <= 10


def test_a_name_that_the_hub_or_the_cache_knows_is_taken(monkeypatch):
    assert not hub(monkeypatch, "ConnectionError", cached="/cache/config.json")
    check_base("owner/name")
    for answer in (None, "EntryNotFoundError"):  # the second: a model whose files have other names
        hub(monkeypatch, answer)
        check_base("owner/name")

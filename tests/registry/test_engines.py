import pytest

from registry import engines
from registry.errors import RegistryUnavailable
from registry.store import Registry


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_is_taken_as_it_is_usually_written(scheme: str) -> None:
    registry = Registry(f"{scheme}://me:secret@nowhere/tandem")
    assert registry.engine.url.drivername == "postgresql+psycopg"
    assert "secret" not in repr(registry)


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@nowhere/x", "me:secret@nowhere", "", "postgresql://me:secret@h:port/x"]
)
def test_a_url_that_names_no_database_of_ours_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(RegistryUnavailable, match="TANDEM_REGISTRY_URL is sqlite") as caught:
        Registry(url)
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_options: object) -> object:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr(engines, "create_engine", missing)
    with pytest.raises(RegistryUnavailable, match=r"\(psycopg\).*pip install 'tandem\[postgresql\]'"):
        Registry("postgresql://nowhere/tandem")

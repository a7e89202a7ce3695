"""Tenants are told apart by their keys."""

from aiohttp.test_utils import make_mocked_request

from router.api.tenants import Tenants


def salt(tenants: Tenants, authorization: str | None, given: str = "") -> str:
    headers = {} if authorization is None else {"Authorization": authorization}
    return tenants.salt(make_mocked_request("POST", "/generate", headers), given)


def test_each_key_has_a_salt_of_its_own_and_none_is_in_it() -> None:
    tenants = Tenants("key")
    ways = [("Bearer ann", ""), ("Bearer ann", "x"), ("Bearer annx", ""), ("Bearer bob", ""), (None, "")]
    salts = [salt(tenants, *way) for way in ways]
    assert len(set(salts)) == len(ways)
    assert salt(tenants, "bearer  ann") == salts[0]
    assert salt(tenants, "Bearer sécret") not in salts
    assert not any("ann" in made for made in salts)
    assert salts[4] == ""
    assert salt(tenants, None, "mine") == salt(tenants, "Bearer", "mine") == "mine"


def test_another_process_makes_others() -> None:
    assert salt(Tenants("key"), "Bearer ann") != salt(Tenants("key"), "Bearer ann")


def test_all_may_share() -> None:
    assert salt(Tenants("all"), "Bearer ann", "mine") == "mine"
    assert salt(Tenants("all"), "Bearer ann") == salt(Tenants("all"), None) == ""

"""Configuration: JSON values by key, versioned, with an expiry exact to the millisecond."""

from datetime import UTC, datetime

import pytest

from ruv_swarm_store import ConfigEntry, Conflict, InvalidValue, Store


def test_set_and_get(store: Store, clock):
    agent = store.agents.register("worker")
    entry = store.config.set("topology", {"kind": "mesh"}, by=agent)
    assert entry == ConfigEntry("topology", {"kind": "mesh"}, clock.now, agent.id, None, 1)
    assert store.config.get("topology") == {"kind": "mesh"}
    assert store.config.entry("topology") == entry
    clock.advance(1)
    again = store.config.set("topology", [1], by="somebody")
    assert again == ConfigEntry("topology", [1], clock.now, "somebody", None, 2)
    assert store.config.get("topology") == [1]


def test_none_is_a_value_and_missing_is_not(store: Store):
    store.config.set("none", None)
    assert store.config.get("none", "default") is None
    assert store.config.get("missing", "default") == "default"
    assert store.config.get("missing") is None
    assert store.config.entry("none").value is None
    assert store.config.entry("missing") is None


def test_delete_says_whether_it_was_set(store: Store):
    store.config.set("k", 1)
    assert store.config.delete("k")
    assert not store.config.delete("k")
    assert store.config.get("k") is None
    assert store.config.set("k", 2).version == 1


# Expiry


def test_a_value_expires_at_its_millisecond(store: Store, clock):
    assert store.config.set("k", 1, ttl=1.5).expires_at == clock.now + 1_500
    store.config.set("at", 1, expires_at=datetime.fromtimestamp(clock.now / 1000 + 1.5, UTC))
    store.config.set("stays", 1)
    clock.advance(ms=1_499)
    assert store.config.prefix("") == {"k": 1, "at": 1, "stays": 1}
    assert store.config.get("k") == 1
    clock.advance(ms=1)
    assert store.config.get("k", "gone") == "gone"
    assert store.config.entry("at") is None
    assert store.config.prefix("") == {"stays": 1}
    assert [entry.key for entry in store.config.changed_since(0)] == ["stays"]
    assert not store.config.delete("k")


def test_what_has_expired_is_shown_by_no_verb_removed_or_not(store: Store, clock):
    store.config.set("k", 1, ttl=1)
    store.config.set("stays", 1)
    clock.advance(1)
    for _ in range(2):
        assert store.config.find_by_id("k") is None
        assert not store.config.exists("k")
        assert store.config.count() == 1
        assert [entry.key for entry in store.config.find_all()] == ["stays"]
        assert store.config.find_many(["k"]) == []
        assert [entry.key for page in store.config.pages() for entry in page] == ["stays"]
        store.config.expire()


def test_an_expired_key_set_again_has_a_version_of_its_own(store: Store, clock):
    store.config.set("k", 1)
    store.config.set("k", 2, ttl=1)
    clock.advance(1)
    assert store.config.set("k", 3).version == 3  # whoever saw version 2 must not take this one for it
    assert store.config.entry("k").expires_at is None


def test_setting_again_without_ttl_lifts_the_expiry(store: Store, clock):
    store.config.set("k", 1, ttl=1)
    assert store.config.set("k", 2).expires_at is None
    clock.advance(10)
    assert store.config.get("k") == 2


def test_expire_removes_what_is_over(store: Store, clock):
    store.config.set("a", 1, ttl=1)
    store.config.set("b", 1, ttl=2)
    store.config.set("c", 1)
    clock.advance(1)
    assert store.config.expire() == 1
    assert store.config.expire() == 0
    assert set(store.config.prefix("")) == {"b", "c"}


@pytest.mark.parametrize("options", [{"ttl": -1}, {"ttl": "1"}, {"expires_at": "x"}, {"ttl": 1, "expires_at": 5}, {"by": 5}], ids=repr)
def test_set_refuses_what_makes_no_sense(store: Store, options):
    with pytest.raises(InvalidValue):
        store.config.set("k", 1, **options)
    with pytest.raises(InvalidValue):
        store.config.compare_and_set("k", 1, expected=0, **options)
    assert store.config.get("k") is None


# Compare and set


def test_zero_means_the_key_must_not_be_set(store: Store, clock):
    assert store.config.compare_and_set("k", 1, expected=0).version == 1
    with pytest.raises(Conflict) as caught:
        store.config.compare_and_set("k", 2, expected=0)
    assert (caught.value.data["expected"], caught.value.data["actual"]) == (0, 1)
    assert store.config.get("k") == 1


def test_a_version_must_be_the_one_seen(store: Store, clock):
    store.config.set("k", 1)
    clock.advance(1)
    entry = store.config.compare_and_set("k", 2, expected=1, by="me", ttl=5)
    assert entry == ConfigEntry("k", 2, clock.now, "me", clock.now + 5_000, 2)
    for expected in (1, 3):
        with pytest.raises(Conflict) as caught:
            store.config.compare_and_set("k", 3, expected=expected)
        assert caught.value.data["actual"] == 2
    with pytest.raises(Conflict) as caught:
        store.config.compare_and_set("missing", 3, expected=1)
    assert caught.value.data["actual"] == 0
    assert store.config.entry("k") == entry


def test_an_expired_key_counts_as_not_set(store: Store, clock):
    store.config.set("k", 1, ttl=1)
    clock.advance(1)
    with pytest.raises(Conflict) as caught:
        store.config.compare_and_set("k", 2, expected=1)
    assert caught.value.data["actual"] == 0
    assert store.config.compare_and_set("k", 2, expected=0) == ConfigEntry("k", 2, clock.now, None, None, 2)
    with pytest.raises(Conflict):
        store.config.compare_and_set("k", 3, expected=1)  # the holder whose entry expired


@pytest.mark.parametrize("expected", [-1, None, 1.0, "1", True])
def test_an_expected_version_is_a_number(store: Store, expected):
    with pytest.raises(InvalidValue):
        store.config.compare_and_set("k", 1, expected=expected)


# Prefixes

KEYS = [
    "", "a", "a.", "a.b", "a.b.c", "a/b", "a_", "a_b", "axb", "a%", "a%b", "A", "b", "b\n", "b\t", "\u00e4", "z", "\u00e9", "e\u0301",
    "\x01", "\x7f", "\x80", "\u00ff", "\ud7ff", "\ud7ffx", "\ue000", "\ue000x", "\ufffd", "\uffff", "\uffffa", "\U0001f41d",
    "\U0001f41d.wing",
    "\U0001f41d%", "\U0010ffff", "\U0010ffff\U0010ffff", "a\U0010ffff", "a\U0010ffffb", "'", '"', "\\", "; DROP TABLE", "*", "[a]", "?",
]  # fmt: skip


@pytest.mark.parametrize("prefix", [*KEYS, "a.b.", "\U0001f41d.", "nothing", "\U0010fffe"], ids=ascii)
def test_a_prefix_finds_exactly_the_keys_that_start_with_it(store: Store, prefix):
    with store.transaction() as work:
        for key in KEYS:
            work.config.set(key, key)
    expected = sorted(key for key in set(KEYS) if key.startswith(prefix))
    found = store.config.prefix(prefix)
    assert list(found) == expected
    assert list(found.values()) == expected


def test_a_prefix_is_text(store: Store):
    with pytest.raises(InvalidValue):
        store.config.prefix(5)


# Changes


def test_changed_since_lists_what_was_set_after_an_instant(store: Store, clock):
    start = clock.now
    for key in "abc":
        clock.advance(ms=1)
        store.config.set(key, key)
    store.config.set("a2", 1)
    clock.advance(ms=1)
    store.config.set("a", "again")
    assert [entry.key for entry in store.config.changed_since(start)] == ["b", "a2", "c", "a"]
    assert [entry.key for entry in store.config.changed_since(start + 2)] == ["a2", "c", "a"]
    assert [entry.key for entry in store.config.changed_since(datetime.fromtimestamp((start + 3) / 1000, UTC))] == ["a"]
    assert store.config.changed_since(clock.now) == []

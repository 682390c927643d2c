"""Configuration: JSON values by key, versioned, with an expiry exact to the millisecond."""

from datetime import UTC, datetime

import crew
import pytest

from ruv_swarm_store import ConfigEntry, Conflict, InvalidValue, NotFound, Store
from ruv_swarm_store.config import ConfigChanges


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
    assert not store.config.exists("k")


def test_a_deleted_key_is_seen_by_no_verb_and_its_version_goes_on(store: Store, clock):
    for key in "abcdef":
        store.config.set(key, key)
    assert store.config.delete("a", by="me")
    assert store.config.delete_many(["b", "c", "missing", "d", "e", "b"]) == 4
    assert store.config.delete_many(["a", "b"]) == 0
    assert [entry.key for entry in store.config.find_all()] == ["f"]
    assert (store.config.count(), store.config.prefix(""), store.config.query().count()) == (1, {"f": "f"}, 1)
    assert store.config.find_many(list("abcdef")) == store.config.changed_since(0) == [store.config.entry("f")]
    assert [store.config.entry("a"), store.config.get("b", "default"), store.config.exists("c")] == [None, "default", False]
    for change in (store.config.update, store.config.replace):
        for version in (1, 2):
            with pytest.raises(NotFound):
                change(ConfigEntry("a", 1, 0, version=version))
    with pytest.raises(Conflict) as caught:
        store.config.compare_and_set("a", 1, expected=2)
    assert caught.value.data["actual"] == 0
    # 1 is the value set first, 2 its end: whoever holds either must not take what comes for it
    assert store.config.set("a", "again").version == 3
    assert store.config.compare_and_set("b", "again", expected=0).version == 3
    assert store.config.upsert(ConfigEntry("c", "again", clock.now)).version == 3
    inserted = store.config.insert_many([ConfigEntry("new", 1, 5), ConfigEntry("d", 2, 6, "me"), ConfigEntry("e", 3, 7)])
    assert inserted == [ConfigEntry("new", 1, 5), ConfigEntry("d", 2, 6, "me", None, 3), ConfigEntry("e", 3, 7, version=3)]
    assert sorted(store.config.find_many(["new", "d", "e"]), key=lambda entry: inserted.index(entry)) == inserted
    assert store.config.count() == 7


def test_inserting_what_is_set_is_a_conflict(store: Store, clock):
    store.config.set("a", 1)
    store.config.set("b", 2, ttl=1)
    clock.advance(1)
    with pytest.raises(Conflict):
        store.config.insert_many([ConfigEntry("b", 3, 0), ConfigEntry("a", 4, 0)])
    with pytest.raises(Conflict):
        store.config.insert_many([ConfigEntry("b", 3, 0), ConfigEntry("b", 4, 0)])
    assert store.config.prefix("") == {"a": 1}
    assert store.config.insert(ConfigEntry("b", 5, 0)).version == 2


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
        store.config.expire(kept=0)


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
    store.config.set("d", 1)
    clock.advance(1)
    store.config.delete("d")
    assert store.config.expire() == store.config.expire(kept=0.001) == 0
    assert store.config.expire(kept=0) == 2
    assert store.config.expire(kept=0) == 0
    assert set(store.config.prefix("")) == {"b", "c"}
    assert store.config.set("a", 1).version == 1
    clock.advance(86_400 + 1)
    assert store.config.expire() == 1
    for wrong in (-1, None, "1"):
        with pytest.raises(InvalidValue):
            store.config.expire(kept=wrong)


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


def test_changed_since_lists_what_was_set_from_an_instant_on(store: Store, clock):
    start = clock.now
    for key in "abc":
        clock.advance(ms=1)
        store.config.set(key, key)
    store.config.set("a2", 1)
    clock.advance(ms=1)
    store.config.set("a", "again")
    assert [entry.key for entry in store.config.changed_since(start)] == ["b", "a2", "c", "a"]
    assert [entry.key for entry in store.config.changed_since(start + 2)] == ["b", "a2", "c", "a"]
    assert [entry.key for entry in store.config.changed_since(start + 3)] == ["a2", "c", "a"]
    assert [entry.key for entry in store.config.changed_since(datetime.fromtimestamp((start + 4) / 1000, UTC))] == ["a"]
    assert store.config.changed_since(clock.now + 1) == []


def test_changes_since_tells_of_what_is_gone_too(store: Store, clock):
    start = clock.now
    for key in "abcd":
        store.config.set(key, 1, ttl=20 if key == "d" else None)
    first = store.config.changes_since(start)
    assert ([entry.key for entry in first.entries], first.deleted, first.until) == (["a", "b", "c", "d"], [], start)
    clock.advance(20)
    store.config.delete("b")
    c = store.config.set("c", 2)
    changes = store.config.changes_since(start + 1)
    assert (changes.entries, changes.deleted, changes.until) == ([c], ["b", "d"], clock.now - 10_000)
    store.config.set("b", 3)  # in the same millisecond
    again = store.config.changes_since(changes.until)
    assert ([entry.key for entry in again.entries], again.deleted) == (["b", "c"], ["d"])
    clock.advance(11)
    last = store.config.changes_since(again.until, overlap=0)
    assert (len(last.entries), last.until) == (2, clock.now)
    assert store.config.changes_since(last.until) == ConfigChanges([], [], last.until)


def test_a_change_that_shows_late_is_not_missed(store: Store, clock):
    store.config.changes_since(clock.now)
    with store.transaction() as work:
        work.config.set("late", 1)
        clock.advance(9)
        asked = clock.now - 10_000
    assert [entry.key for entry in store.config.changes_since(asked).entries] == ["late"]


def test_many_keys_are_found_at_once(store: Store):
    store.config.insert_many(ConfigEntry(f"k-{n}", n, 0) for n in range(2_000))
    wanted = [f"k-{n}" for n in range(0, 300_000, 2)]
    assert len(store.config.find_many(wanted)) == 1_000
    assert store.config.delete_many(wanted) == 1_000
    assert store.config.count() == 1_000


@pytest.mark.needs("threads")
def test_of_many_that_swap_a_version_one_does(store: Store):
    entry = store.config.set("n", 0)
    for round in range(3):
        answers = crew.in_threads(8, crew.swap, store, entry.version)
        [entry] = [answer for answer in answers if answer is not None]
        assert store.config.entry("n") == entry
        assert entry.version == round + 2
    assert crew.in_threads(6, crew.begin_key, store).count(True) == 1
    store.config.delete("new")
    assert crew.in_threads(6, crew.begin_key, store).count(True) == 1

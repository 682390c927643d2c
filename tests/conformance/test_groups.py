"""Groups: named sets of agents, each with a role or none."""

import pytest
from msgspec import structs

from ruv_swarm_store import Conflict, Group, InvalidValue, NotFound, Store
from ruv_swarm_store.entities import Member


@pytest.fixture
def two(store: Store):
    return [store.agents.register("worker") for _ in range(2)]


def test_create_gives_the_group_as_it_is_stored(store: Store, clock):
    group = store.groups.create("team", type="crawlers", configuration={"size": 3})
    assert group == Group(group.id, "team", "crawlers", clock.now, {"size": 3}, 1)
    assert store.groups.get(group.id) == group
    assert store.groups.create("other", id="mine").id == "mine"


def test_a_name_belongs_to_one_group(store: Store):
    store.groups.create("team")
    with pytest.raises(Conflict, match="'team'") as caught:
        store.groups.create("team")
    assert caught.value.data == {"kind": "unique", "name": "team"}
    other = store.groups.create("other")
    with pytest.raises(Conflict):
        store.groups.update(structs.replace(other, name="team"))
    assert store.groups.get(other.id) == other


def test_join_says_who_since_when_and_as_what(store: Store, two, clock):
    group = store.groups.create("team")
    first = store.groups.join(group, two[0], role="lead")
    assert first == Member(group.id, two[0].id, "lead", clock.now)
    clock.advance(1)
    second = store.groups.join(group.id, two[1].id)
    assert second == Member(group.id, two[1].id, None, clock.now)
    assert store.groups.members(group) == [first, second]


def test_joining_again_changes_the_role_only(store: Store, two, clock):
    group = store.groups.create("team")
    store.groups.join(group, two[0], role="lead")
    joined = clock.now
    clock.advance(1)
    assert store.groups.join(group, two[0], role="member") == Member(group.id, two[0].id, "member", joined)
    assert len(store.groups.members(group)) == 1


def test_leave_says_whether_there_was_anything_to_leave(store: Store, two):
    group = store.groups.create("team")
    store.groups.join(group, two[0])
    assert store.groups.leave(group, two[0])
    assert not store.groups.leave(group.id, two[0].id)
    assert not store.groups.leave("nothing", "nobody")
    assert store.groups.members(group) == []


def test_groups_of_an_agent_come_by_name(store: Store, two):
    groups = [store.groups.create(name) for name in ("b", "a", "c")]
    for group in groups:
        store.groups.join(group, two[0])
    store.groups.join(groups[0], two[1])
    assert [group.name for group in store.groups.groups_of(two[0])] == ["a", "b", "c"]
    assert store.groups.groups_of(two[1].id) == [groups[0]]
    assert store.groups.groups_of("nobody") == []


def test_a_member_is_an_agent_and_a_group_that_exist(store: Store, two):
    group = store.groups.create("team")
    with pytest.raises(NotFound):
        store.groups.join(group, "nobody")
    with pytest.raises(NotFound):
        store.groups.join("nothing", two[0])
    assert store.groups.members(group) == []


def test_a_deleted_group_or_agent_takes_its_memberships_along(store: Store, two):
    group, other = store.groups.create("team"), store.groups.create("other")
    for agent in two:
        store.groups.join(group, agent)
        store.groups.join(other, agent)
    store.agents.delete(two[0])
    assert [member.agent_id for member in store.groups.members(group)] == [two[1].id]
    assert store.groups.delete(group)
    assert store.groups.groups_of(two[1]) == [other]


def test_a_group_s_messages_outlive_it(store: Store, two):
    group = store.groups.create("team")
    message = store.messages.publish("t", 1, to_group=group)
    store.groups.delete(group)
    assert store.messages.get(message.id) == structs.replace(message, to_group=None)


@pytest.mark.parametrize("options", [{"name": None}, {"name": 5}, {"type": 5}, {"configuration": {1: 2}}, {"id": 5}], ids=repr)
def test_create_refuses_what_cannot_be_stored(store: Store, options):
    with pytest.raises(InvalidValue):
        store.groups.create(**{"name": "n", **options})
    assert store.groups.count() == 0


def test_joining_again_without_a_role_keeps_it(store: Store, two):
    group = store.groups.create("team")
    lead = store.groups.join(group, two[0], role="lead")
    assert store.groups.join(group, two[0]) == lead
    assert store.groups.leave(group, two[0])
    assert store.groups.join(group, two[0]).role is None


def test_a_role_is_text(store: Store, two):
    group = store.groups.create("team")
    with pytest.raises(InvalidValue):
        store.groups.join(group, two[0], role=5)

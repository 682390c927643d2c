"""What a swarm had stored when the first revision of the schema was all there was, for an upgrade to keep.

Plain SQL, the same for every engine, as that release wrote it: neither the tables nor the verbs of today take part.
"""

REVISION = "0001"

ROWS = [
    """INSERT INTO agents VALUES
        ('a-1', 'crawler', 1700000000000, 1700000005000, 'one', 'busy', '["crawl", "parse"]', '{"depth": 3}', NULL, 2),
        ('a-2', 'crawler', 1700000000001, 1700000005001, 'two \U0001f41d', 'idle', '[]', '{}', NULL, 1),
        ('a-3', 'parser', 1700000000002, 1700000000002, 'one', 'terminated', '[]', '{}', 1700000000900, 4)""",
    """INSERT INTO agent_groups VALUES ('g-1', 'team', 'crawlers', 1700000000000, '{"size": 2}', 1), ('g-2', 'none', '', 1, '{}', 1)""",
    """INSERT INTO agent_group_members VALUES ('g-1', 'a-1', 'lead', 1700000000100), ('g-1', 'a-2', NULL, 1700000000101)""",
    # Two that wait for one, one of which waits for another too; a lease; a failure; a parent; a key.
    """INSERT INTO tasks (id, type, payload, created_at, priority, max_retries, status, parent_task_id, run_at, unique_key,
            on_dependency_failure, agent_id, result, error_message, assigned_at, started_at, completed_at, lease_expires_at, fence,
            retry_count, version, position) VALUES
        ('t-1', 'fetch', '{"url": "x", "n": 1.0}', 1700000001000, 5, 3, 'completed', NULL, NULL, NULL, 'cancel', 'a-1', '{"links": 3}',
            NULL, 1700000001001, 1700000001002, 1700000001003, NULL, 1, 0, 4, 1),
        ('t-2', 'fetch', 'null', 1700000001001, 9, 3, 'running', NULL, NULL, 'only', 'cancel', 'a-1', NULL, NULL, 1700000002000,
            1700000002001, NULL, 4000000000000, 1, 0, 3, 2),
        ('t-3', 'parse', '[1, 2]', 1700000001002, 0, 0, 'blocked', 't-1', NULL, NULL, 'fail', NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            0, 0, 1, 4),
        ('t-4', 'parse', '"p"', 1700000001003, 100, 1, 'blocked', 't-1', 1700000009000, NULL, 'cancel', NULL, NULL, NULL, NULL, NULL,
            NULL, NULL, 0, 0, 1, 7),
        ('t-5', 'index', '{}', 1700000001004, 5, 2, 'scheduled', NULL, 1700000009999, NULL, 'cancel', NULL, NULL, 'once', NULL, NULL, NULL,
            NULL, 1, 1, 3, 8),
        ('t-6', 'index', '{}', 1700000001005, 5, 3, 'pending', NULL, NULL, NULL, 'cancel', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0,
            0, 1, 9)""",
    "INSERT INTO task_dependencies VALUES ('t-3', 't-1'), ('t-3', 't-2'), ('t-4', 't-2')",
    "INSERT INTO task_failures VALUES ('t-5', 1, 'a-2', 'once', 1700000001500)",
    """INSERT INTO messages VALUES
        ('m-1', 'found', '{"n": 1}', 1700000003000, 'broadcast', 'a-1', NULL, NULL, NULL, NULL, 1, 1),
        ('m-2', 'ask', '"?"', 1700000003001, 'direct', 'a-1', 'a-2', NULL, 'c', NULL, 1, 2),
        ('m-3', 'team', 'null', 1700000003002, 'group', NULL, NULL, 'g-1', NULL, NULL, 1, 5)""",
    "INSERT INTO message_cursors VALUES ('a-1', '', 0), ('a-2', '', 1)",
    "INSERT INTO message_deliveries VALUES ('a-2', 1, 1700000003100, 1, 1700000033100, 1700000003200)",
    """INSERT INTO metrics VALUES
        ('latency_ms', 12.5, 1700000004000, 'gauge', 'ms', 'a-1', '{"host": "h"}', 1, 1),
        ('latency_ms', 7.25, 1700000004001, 'gauge', 'ms', NULL, '{}', 1, 2)""",
    """INSERT INTO events VALUES
        ('e-1', 't-1', 'task', 'enqueued', '{"by": "a-1"}', NULL, 1700000001000, 1, 1),
        ('e-2', 't-1', 'task', 'completed', '[1.0, 2]', '{"trace": 1}', 1700000001003, 2, 3)""",
    "INSERT INTO swarm_config VALUES ('topology', '{\"kind\": \"mesh\"}', 1700000000000, 'a-1', NULL, 3)",
]
# 1 where another task depends on it.
AWAITED = {"t-1": 1, "t-2": 1, "t-3": 0, "t-4": 0, "t-5": 0, "t-6": 0}

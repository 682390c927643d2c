"""The demo: a swarm of worker processes that indexes a tree of Python source, all of its state in one store.

`worker` does the work, one process each; `coordinator` starts workers, replaces the dead and checks the outcome. They share
nothing but the store: kill any of them, or all, start again, and the run goes on from what was committed.

`work` is what is done with a task, `source` what is counted, `recount` counts it once more without a store. `run` is the run as the
store has it and `outcome` how it ends, `crew` the processes, `liveness` tells a dead process from a living one. `progress` reads how far
things are, `display` and `report` show it. `cooperative` is the whole in one thread, for a browser.
"""

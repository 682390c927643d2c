"""`python -m ruv_swarm_store.cli` is `ruv-swarm`."""

from ruv_swarm_store.cli import main

main()

"""Avatar Forcing: conversational head avatars that talk and listen."""

import os

# Threads of OpenMP spin while they wait for each other. Where something else needs the cores, those that wait take them
# from those that work, and everything becomes many times slower (`af bench busy`). OpenMP reads this when torch is
# imported, so it is set before; whoever has set a policy keeps it.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

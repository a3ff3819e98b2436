"""The router. Importing it starts nothing."""

import os

# numpy brings OpenBLAS, which starts a thread for each processor to multiply matrices. There are
# none here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

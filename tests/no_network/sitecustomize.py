"""Python imports this by itself where its folder is on PYTHONPATH: kernels too."""

import closed_network

closed_network.close()

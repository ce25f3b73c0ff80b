"""Looking at a stack: socket tables as ss prints them, TCP_INFO, counters as nstat prints them."""

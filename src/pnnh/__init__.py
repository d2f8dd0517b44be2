"""pnnh: deep networks without residual connections. Public names load on first use; importing costs nothing."""

__version__ = "0.1.0"

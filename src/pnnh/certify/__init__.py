"""Is a network plain? The certificate, its definition, and the graphs it reads."""

from pnnh.certify.certificate import Certificate, Join, certify

__all__ = ["Certificate", "Join", "certify"]

"""A certificate authority of the test's own, by openssl."""

from __future__ import annotations

import pathlib
import subprocess


class Authority:
    """Makes certificates below `directory`. Attribute `ca`: its own."""

    def __init__(self, directory: pathlib.Path, name: str = "ca") -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(self._key), "-out", str(self.ca)),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
        )

    def certificate(self, name: str) -> tuple[str, str]:
        """Files of a certificate for 127.0.0.1, and of its key."""
        request, file, key, more = (self._directory / f"{name}.{end}" for end in ("csr", "pem", "key", "ext"))
        more.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)),
        )
        self._openssl(
            *("x509", "-req", "-in", str(request), "-days", "2", "-CA", str(self.ca), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-extfile", str(more), "-out", str(file)),
        )
        return str(file), str(key)

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

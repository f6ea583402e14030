"""Logs of recorded runs, with their checksums; `diffedu.claims.recorded` reads them."""

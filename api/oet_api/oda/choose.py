"""The archive that the settings name. What the others need is not imported."""

from __future__ import annotations

from pathlib import Path

from oet_api.oda.files import FileOda
from oet_api.oda.port import Oda
from oet_crds.errors import UnavailableError
from oet_crds.settings import OdaBackend, OdaSettings

__all__ = ["build_oda"]


def build_oda(settings: OdaSettings) -> Oda:
    """Return the archive; it is not asked anything yet.

    Raises:
        UnavailableError: A package that it needs is not installed.
    """
    if settings.backend is OdaBackend.FILESYSTEM:
        return FileOda(Path(settings.data_dir))
    try:
        from oet_api.oda.postgres import PostgresOda
    except ImportError as error:
        raise UnavailableError(
            f"[oda] backend = {settings.backend} needs the Python package {error.name}: pip install 'ska-oso-oet[api]', "
            f"or set ODA_BACKEND_TYPE={OdaBackend.FILESYSTEM}"
        ) from error
    return PostgresOda(settings)

"""The database of a study, opened with care: what is not Optuna's is never written to."""

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from utils.errors import ConfigError

HEARTBEAT_SECONDS = 60  # a trial that gives no sign for twice as long counts as failed
SQLITE_TIMEOUT = 60  # seconds that a process waits while another writes


def open_storage(url: str) -> RDBStorage:
    """Connect to a database; an empty one gets Optuna's tables.

    Raises ConfigError where it cannot be reached, needs a driver that is not installed, or holds something else.
    """
    try:
        address = sqlalchemy.make_url(url)
        options = {"connect_args": {"timeout": SQLITE_TIMEOUT}} if address.get_backend_name() == "sqlite" else {}
        engine = sqlalchemy.create_engine(address, **options)
        tables = sqlalchemy.inspect(engine).get_table_names()
        engine.dispose()
        if tables and not {"studies", "trials", "version_info"} <= set(tables):
            raise ConfigError(f"--storage: {shown(url)} is a database of something else ({tables[0]}). Name another.")
        return RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS)
    except ImportError as error:
        raise ConfigError(f"--storage: {shown(url)} needs a driver ({error}). Install it with pip.") from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(
            f"--storage: '{shown(url)}' is not the URL of a database; expected one like sqlite:///sweeps.db or "
            "postgresql://user@host/sweeps."
        ) from error
    except (SQLAlchemyError, RuntimeError) as error:  # RuntimeError: tables of another version of Optuna
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"--storage: {shown(url)} cannot be used as a storage ({reason}). Name another.") from error


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url

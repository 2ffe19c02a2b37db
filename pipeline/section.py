"""What every section of the run's configuration is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration: frozen, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

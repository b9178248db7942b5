"""The settings of a run: `load_config` merges and checks them."""

from config.loading import (
    config_from_resolved,
    format_overrides,
    load_config,
    parse_overrides,
)

__all__ = ["config_from_resolved", "format_overrides", "load_config", "parse_overrides"]

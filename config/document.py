"""Write docs/configuration.md from the settings in config/schema.py.

python -m config.document
"""

import argparse
import json
import sys
from pathlib import Path

from config.loading import load_config
from config.schema import IGNORED_KEYS, PAPER, RELEASE, DMDConfig
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
COMMAND = "python -m config.document"
SWITCHES = "Switches"
SECTIONS = {  # title of a section -> its first key in config/schema.py
    "Data": "featurePath",
    "Text encoder": "use_bert",
    "Model": "dst_feature_dim_nheads",
    SWITCHES: "objective",
    "Objective": "lambda_decoupling",
    "Training": "batch_size",
}

LARGEST_COUNT = 2**31 - 1  # a technical limit, not shown in the table

INTRODUCTION = """\
# Configuration

This page lists every setting of a run: its type, its default and its meaning.

```sh
python run.py -d synthetic --epochs 2 --set learning_rate=5e-4 nlevels=1 --name small
```

`{command}` generates this page from [config/schema.py](../config/schema.py), which defines and
checks the settings. Options of the command line that are not settings, such as `--seeds` or
`--device`, are listed by `python run.py -h`.

## Where a value comes from

The settings of a run are merged from these sources. A later source overrides an earlier one.

1. The default in `config/schema.py`.
2. The config file: `config/config.json`, or the file given with `-c`. Within the file:
   `datasetCommonParams.<data set>.<aligned or unaligned>`, then `datasetCommonParams` itself
   (`dataset_root_dir`), then `dmd.commonParams`, `dmd.objectiveParams` and
   `dmd.datasetParams.<data set>`.
3. `--set key=value`, or the argument `config` of `DMD_run`. `--epochs N` is short for
   `--set max_epochs=N`.

A resumed run and `test.py` use the settings that the run has saved in its `run.json`.

- A value of `--set` is parsed as JSON, and is a string if it is not valid JSON:
  `--set use_bert=false dst_feature_dim_nheads=[40,8] learning_rate_bert=null fusion=gate`.
- Types are strict: `"1"` is not a number, and `1` is not a flag. An unknown key is an error that
  suggests a similar one. Errors name the file or `--set`, and exit with status 2 before any data
  are read.
- `feature_dims` must match the feature file; a mismatch is an error that names the right value. The
  number of steps is taken from the file.
- Config files of MMSA and of the released code load unchanged. These keys have no effect here. They
  are ignored in a config file, with a warning, and refused by `--set`: {ignored_keys}.

## Switches for paper and release

The paper and the released code differ in several places, and a switch selects the behavior of each.
A switch that is null takes the value of `objective`, `release` by default; a switch that is set
overrides it. `--set objective=paper fusion=sigmoid` is the objective of the paper with the fusion
of the release. [Paper versus release](paper-vs-release.md) describes every switch, with measured
results.

## Adding a data set

Add a section with its feature files to `config/config.json`, or to a copy that you give with `-c`.
`-d` takes its name, which may contain letters, digits, `_` and `-`:

```json
{{
  "datasetCommonParams": {{
    "dataset_root_dir": "./dataset",
    "my-data": {{
      "aligned": {{"featurePath": "MY/aligned_50.pkl", "feature_dims": [768, 25, 35]}}
    }}
  }},
  "dmd": {{
    "commonParams": {{}},
    "datasetParams": {{"my-data": {{"batch_size": 32, "update_epochs": 1}}}}
  }}
}}
```

A data set has an `aligned` variant, an `unaligned` one, or both; `need_data_aligned` selects one.
The section under `datasetParams` is optional. The layout of a feature file is described in
[Your own data](own-data.md).

## Settings

"Default" is the default of `config/schema.py`, which is the value of the release for MOSI; a value
that `config/config.json` sets for MOSEI follows in parentheses."""


def make_page() -> str:
    """Return the text of docs/configuration.md."""
    ignored_keys = ", ".join(f"`{key}`" for key in IGNORED_KEYS)
    parts = [INTRODUCTION.format(command=COMMAND, ignored_keys=ignored_keys)]
    for title, keys in _keys_by_section().items():
        parts.append(f"### {title}")
        parts.append(_switches_table(keys) if title == SWITCHES else _settings_table(keys))
    return "\n\n".join(parts) + "\n"


def write_page(check: bool = False) -> None:
    """Write the page, or check that it is current.

    Args:
        check: Raise instead of writing.

    Raises:
        ConfigError: `check` is true, and the file differs from `make_page()`.
    """
    page = make_page()
    current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if page == current:
        return
    if check:
        raise ConfigError(f"{PAGE}: does not match config/schema.py. Run {COMMAND}.")
    PAGE.write_text(page, encoding="utf-8")


def _keys_by_section() -> dict[str, list[str]]:
    """The settings of each section, in the order of the schema."""
    titles = {first_key: title for title, first_key in SECTIONS.items()}
    sections: dict[str, list[str]] = {}
    title = ""
    for key in DMDConfig.model_fields:
        title = titles.get(key, title)
        sections.setdefault(title, []).append(key)
    return sections


def _settings_table(keys: list[str]) -> str:
    """A Markdown table of settings."""
    mosi = load_config("dmd", "mosi")
    mosei = load_config("dmd", "mosei")
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        field = DMDConfig.model_fields[key]
        default = "set by the config file" if field.is_required() else _as_code(field.default)
        if not field.is_required() and mosei[key] != mosi[key]:
            default += f" (MOSEI: {_as_code(mosei[key])})"
        lines.append(_row(f"`{key}`", _describe_type(key), default, field.description))
    return "\n".join(lines)


def _switches_table(keys: list[str]) -> str:
    """A Markdown table of `objective` and the switches that follow it."""
    lines = ["| key | values | `release` | `paper` | meaning |", "|---|---|---|---|---|"]
    for key in keys:
        release = _as_code(RELEASE.get(key, "release"))
        paper = _as_code(PAPER.get(key, "paper"))
        description = DMDConfig.model_fields[key].description
        lines.append(_row(f"`{key}`", _describe_type(key), release, paper, description))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    """A row of a Markdown table."""
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _describe_type(key: str) -> str:
    """The type and the allowed values of a setting, in words."""
    return _describe_schema(DMDConfig.model_json_schema()["properties"][key])


def _describe_schema(schema: dict) -> str:
    """The type and the allowed values that a JSON schema describes, in words."""
    if "anyOf" in schema:
        return " or ".join(_describe_schema(alternative) for alternative in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(_as_code(value) for value in schema["enum"])
    if "const" in schema:
        return _as_code(schema["const"])
    if schema["type"] == "array":
        return f"list of {schema['minItems']}: {_describe_schema(schema['items'])}"
    if schema["type"] == "null":
        return "`null`"
    if schema["type"] == "boolean":
        return "`true`, `false`"
    return f"{schema['type']} {_describe_range(schema)}".rstrip()


def _describe_range(schema: dict) -> str:
    """The bounds of a number, "" for none."""
    words = []
    if "exclusiveMinimum" in schema:
        words.append(f"> {schema['exclusiveMinimum']:g}")
    if "minimum" in schema:
        words.append(f"≥ {schema['minimum']:g}")
    if "exclusiveMaximum" in schema:
        words.append(f"< {schema['exclusiveMaximum']:g}")
    if schema.get("maximum", LARGEST_COUNT) < LARGEST_COUNT:
        words.append(f"≤ {schema['maximum']:g}")
    return ", ".join(words)


def _as_code(value: object) -> str:
    """Format a value as in config files and `--set`."""
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def main() -> None:
    """Run the command."""
    parser = ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit with 2 if it is not current")
    write_page(parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(run_command(main))

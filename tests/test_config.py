"""One typed configuration: what it takes, what it refuses and by which name."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.config import JobConfig, load_config, parse_section
from trio_ray.errors import ConfigError
from trio_ray.method.selectors.trio import Trio

EXAMPLE = """
input: s3://corpus/{00000..00099}.tar
output: s3://bucket/cache
model: {name: llava-hf/llava-v1.6-vicuna-7b-hf, dtype: bfloat16}
method: {retention: 0.111, settings: {supervised_rows: [-2, -5, -4, -3]}}
source: {turns: each, text_column: question}
s3: {endpoint_url: "http://127.0.0.1:8333", part_mib: 64}
replicas: {min: 2, max: 8, silence_limit_s: 600}
"""
JOB_FILES = sorted((Path(__file__).parents[1] / "jobs").glob("precompute*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    return file


def test_a_small_file_and_overrides_make_a_configuration(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, EXAMPLE),
        ["method.retention=0.25", "source.turns=first", "input=[a.tar, b.tar]", "prompt.template='Q: {prompt}'"],
        {"output": "/tmp/cache", "method.settings.threshold": 0.7},
    )
    assert config.input == ("a.tar", "b.tar")
    assert config.output == "/tmp/cache"
    assert config.method.retention == 0.25
    assert config.method.build(32).selector == Trio(threshold=0.7, supervised_rows=(-5, -4, -3, -2))
    assert config.prompt.template == "Q: {prompt}"
    assert (config.replicas.min, config.replicas.max) == (2, 8)


def test_one_input_need_not_be_a_list(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, EXAMPLE)).input == ("s3://corpus/{00000..00099}.tar",)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing\n")) == JobConfig()


@pytest.mark.parametrize("file", JOB_FILES, ids=[file.name for file in JOB_FILES])
def test_the_shipped_job_files_are_valid(file: Path) -> None:
    config = load_config(file)
    assert config.input
    assert config.output


def test_job_files_are_shipped() -> None:
    assert len(JOB_FILES) >= 2


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("method.retenton=0.1", "method.retenton", "is not a setting; did you mean method.retention?"),
        ("retention=0.1", "retention", "is not a setting; did you mean method.retention?"),
        ("model.retention=0.1", "model.retention", "is not a setting; did you mean method.retention?"),
        ("pipelin.lookahead=1", "pipelin", "is not a setting; did you mean pipeline?"),
        ("speed=9", "speed", "is not a setting; jobs/CONFIGURATION.md lists all settings"),
        ("method.retention=0", "method.retention", "greater than 0"),
        ("method.retention=2", "method.retention", "less than or equal to 1"),
        ("method.retention=half", "method.retention", "number"),
        ("method.tokens=-1", "method.tokens", "greater than 0"),
        ("method.prune_points=[5, 2]", "method.prune_points", "ascending"),
        ("method.prune_points=[]", "method.prune_points", "ascending"),
        ("method.settings.supervised_rows=[-2, 0]", "method.settings.supervised_rows", "negative"),
        ("method.settings.supervised_rows=[-2, -2]", "method.settings.supervised_rows", "distinct"),
        ("method={retention: 0.1, tokens: 64}", "method.tokens", "retention and tokens are both given"),
        ("method.prune_points=[1, 2, 3, 4, 5]", "method.weights", "5 prune points need as many weights"),
        ("method={keep: [4, 2]}", "method.keep", "needs method.prune_points"),
        ("method={keep: [4, 2], prune_points: [1, 2, 3]}", "method.keep", "has 2 entries for 3 prune_points"),
        ("method={weights: [4, 2], prune_points: [1]}", "method.weights", "has 2 entries for 1 prune_points"),
        (
            "method={keep: [4, 2], prune_points: [1, 2], weights: [2, 1]}",
            "method.weights",
            "means nothing beside method.keep",
        ),
        ("method={keep: [2, 4], prune_points: [1, 2]}", "method.keep", "not grow"),
        ("method.selector=best", "method.selector", "module:Class"),
        ("method.selector=no_such_module:Mine", "method.selector", "cannot be imported"),
        ("method.selector=json:JSONEncoder", "method.selector", "inherits from Selector"),
        ("method.settings={treshold: 0.7}", "method.settings.treshold", "its settings are: threshold, supervised_rows"),
        ("method={selector: uniform, settings: {threshold: 0.7}}", "method.settings.threshold", "it has no settings"),
        ("method.settings={threshold: high}", "method.settings.threshold", "number"),
        ("method={layout: uniform, prune_points: [0, 4]}", "method.layout", "method.prune_points [0]"),
        ("method={layout: uniform, positions: original}", "method.layout", "method.positions compact"),
        ("prompt.template=hello", "prompt.template", "{prompt}"),
        ("cache.codec=zip", "cache.codec", "raw"),
        ("cache.level=pixels", "cache.level", "embeds"),
        ("cache={level: embeds, codec: int4}", "cache", "codec means nothing to level 'embeds'"),
        ("cache={instruction: look}", "cache", "instruction means nothing to scope 'prompt'"),
        ("cache={scope: image, instruction: ' '}", "cache.instruction", "must be a text"),
        ("cache={scope: image, instruction: 'see <image>'}", "cache.instruction", "without <image>"),
        ("model.dtype=int8", "model.dtype", "bfloat16"),
        ("pipeline.max_bad_fraction=1.5", "pipeline.max_bad_fraction", "1"),
        ("replicas={min: 3, max: 2}", "replicas", "min 3 is above"),
        ("pipeline=fast", "pipeline", "fast"),
        ("output.bucket=x", "output.bucket", "not a section"),
        ("retention", "--set", "key=value"),
        ("method.retention=[", "method.retention", "YAML"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_that_names_it(
    tmp_path: Path, override: str, field: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "output: /tmp/cache"), [override])
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_embeddings_of_layers_that_read_all_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.full_depth.*no layer has run on"):
        load_config(write(tmp_path, "method: {full_depth: 0.5}"), ["cache.level=embeds"])
    with pytest.raises(ConfigError, match=r"method\.selector.*method\.schedule: auto"):
        load_config(write(tmp_path, "method: {selector: auto}"))
    with pytest.raises(ConfigError, match=r"method\.settings.*name it"):
        load_config(write(tmp_path, "method: {selector: auto, schedule: auto, settings: {threshold: 0.5}}"))
    for level in ("embeds", "indices"):
        with pytest.raises(ConfigError, match=r"method\.dropped.*stores no keys"):
            load_config(write(tmp_path, "method: {dropped: represented}"), [f"cache.level={level}"])
        searched = load_config(write(tmp_path, "method: {schedule: auto}"), [f"cache.level={level}"])
        assert searched.method.dropped == "lost", "no search may choose what is not stored"
    assert load_config(write(tmp_path, "method: {schedule: auto}")).method.dropped is None
    with pytest.raises(ConfigError, match=r"method\.full_depth.*method\.schedule: auto"):
        load_config(write(tmp_path, "method: {full_depth: auto}"))
    chosen = load_config(write(tmp_path, "method: {full_depth: auto, schedule: auto}"))
    assert chosen.method.build(8).schedule.full_layers == 0  # until it is chosen


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert caught.value.field == "--config"
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: .*none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_a_configuration_never_changes_after_validation() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_section(JobConfig, {}).method.retention = 0.5  # type: ignore[misc]


def test_a_section_with_everything_commented_out_means_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "cache:\n  # codec: int4\npipeline:\n")
    assert load_config(file) == JobConfig()
    assert load_config(file, ["cache.codec=int4"]).cache.codec == "int4"


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("prompt.template={prompt}", "prompt", "template", "{prompt}"),
        ("prompt.template=USER: {prompt} ASSISTANT:", "prompt", "template", "USER: {prompt} ASSISTANT:"),
        ("source.image_name={imageId}.jpg", "source", "image_name", "{imageId}.jpg"),
        ("source.text_template={question}", "source", "text_template", "{question}"),
        ("model.revision=2024", "model", "revision", "2024"),
        ("source.key_column=null", "source", "key_column", None),
    ],
)
def test_an_override_of_a_text_is_that_text_whatever_yaml_would_make_of_it(
    override: str, section: str, name: str, value: str | None
) -> None:
    assert getattr(getattr(load_config(overrides=[override]), section), name) == value


def test_settings_for_other_processes_have_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process on a cluster works in a folder of its own, where a relative path would name something else."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    here = {"input": ["in/{a..b}/*.tar", "s3://bucket/in"], "output": "out", "model.name": "model"}
    found = load_config(values={**here, "source.image_root": "images"}).absolute()
    assert found.input == (f"{tmp_path}/in/{{a..b}}/*.tar", "s3://bucket/in")
    assert found.output == f"{tmp_path}/out"
    assert found.model.name == f"{tmp_path}/model"
    assert found.source.image_root == f"{tmp_path}/images"
    elsewhere = load_config(values={"output": "s3://bucket/out", "model.name": "owner/model"})
    assert elsewhere.absolute() == elsewhere

"""Settings: flag over environment over file over default, and one sentence for what cannot be."""

from pathlib import Path

import pytest
from msgspec import inspect

from router.__main__ import read_config
from router.catalog.candidate_config import begun_with, repository_of
from router.settings import options
from router.settings.config import GIB, MIB, Config
from router.settings.machine import Machine
from router.settings.model_names import hub_id
from router.settings.options import ConfigError, OneSentenceParser

CPU_BOX = Machine(num_gpus=0, num_cores=8, available_bytes=16 * GIB)
GPU_BOX = Machine(num_gpus=4, num_cores=64, available_bytes=500 * GIB)


def read(*argv, file=None, **environment):
    if file is not None:
        argv = (*argv, "--config", str(file))
    return options.read(Config, OneSentenceParser(prog="helios serve"), argv, environment)


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "helios.toml"
        path.write_text(text)
        return path

    return write


def test_defaults_are_those_of_the_struct():
    assert read() == Config()


def test_a_flag_wins_over_the_environment_and_that_over_the_file(toml):
    file = toml("port = 1000\nblock_size = 32\nmax_best_of = 3")
    config = read("--port", "3001", file=file, PORT="2001", BLOCK_SIZE="64")
    assert (config.port, config.block_size, config.max_best_of) == (3001, 64, 3)


@pytest.mark.parametrize("option", options.options_of(Config), ids=lambda option: option.name)
def test_every_field_can_be_set_in_all_three_ways(option, toml):
    text, value = example(option)
    flag = [option.flag_name] if value is True else [option.flag_name, text]
    needs = NEEDS.get(option.name, {})
    rest = [part for name, value in needs.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert getattr(read(*flag, *rest), option.name) == value
    assert getattr(read(*rest, **{option.env_names[0]: text}), option.name) == value
    is_bare = (option.is_number or option.is_flag) and not option.is_many
    quoted = text if is_bare else f'"{text}"'
    assert getattr(read(*rest, file=toml(f"{option.name} = {quoted}")), option.name) == value


NEEDS = {  # what must be said with it
    "shard_addresses": {"shard_secret_file": "secret"},
    "exit_mode": {"exit_layers": "8"},
    "exit_layers": {"exit_mode": "per_row"},
    "exits": {"exit_mode": "per_row"},
    "replay_exits": {"exit_mode": "per_row", "exit_layers": "8"},
    "drafters": {"exit_mode": "speculative", "exit_layers": "8"},
    "drafter_head": {"exit_mode": "speculative", "drafters": "head"},
}


def example(option):
    """A text that is not the default, and its value."""
    if option.name == "exit_layers":
        return "8,16", (8, 16)
    if isinstance(option.type, inspect.FloatType):
        return "0.25", 0.25
    if option.is_flag:
        return "true", True
    if option.is_number:
        number = max(option.type.ge or 0, 77)
        return str(number), number
    if option.name == "shard_addresses":
        return "tcp://one:1,tcp://two:2", ("tcp://one:1", "tcp://two:2")
    if option.name == "redis_url":
        return "redis://somewhere", "redis://somewhere"
    if option.name == "otlp_endpoint":
        return "http://somewhere", "http://somewhere"
    text = option.choices[-1] if option.choices else "something"
    return text, (text,) if option.is_many else text


def test_other_names_of_a_flag_mean_the_same():
    assert read("--num-shard", "3").num_shards == 3
    assert read(NUM_SHARD="3").num_shards == 3
    assert read("--max-input-length", "100").max_input_tokens == 100


def test_an_empty_variable_says_nothing():
    assert read(PORT="").port == Config().port


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1073741824", GIB),
        ("2GiB", 2 * GIB),
        ("512 MiB", 512 * MIB),
        ("1.5gib", GIB * 3 // 2),
        ("2GB", 2 * 10**9),
    ],
)
def test_bytes_have_units(text, count, toml):
    assert read("--kv-cache-bytes", text).kv_cache_bytes == count
    assert read(file=toml(f'kv_cache_bytes = "{text}"')).kv_cache_bytes == count


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--port", "70000"], "port must be at most 65535, not 70000."),
        (["--port", "web"], "port must be a whole number, not 'web'."),
        (["--port", "3.5"], "port must be a whole number, not '3.5'."),
        (["--max-best-of", "0"], "max_best_of must be at least 1, not 0."),
        (
            ["--kv-cache-bytes", "lots"],
            "kv_cache_bytes must be a number of bytes such as 512MiB, not 'lots'.",
        ),
        (["--kv-cache-bytes", "nan"], "kv_cache_bytes must be a number of bytes such as 512MiB, not 'nan'."),
        (["--kv-cache-bytes", "1kiB"], f"kv_cache_bytes must be at least {MIB}, not 1024."),
        (["--dtype", "int8"], "dtype must be auto, bfloat16, float16 or float32, not 'int8'."),
        (
            ["--max-input-tokens", "200", "--max-total-tokens", "100"],
            "max_input_tokens (200) must be smaller than max_total_tokens (100), "
            "which counts the answer too.",
        ),
        (
            ["--max-batch-prefill-tokens", "8", "--max-batch-size", "16"],
            "max_batch_prefill_tokens (8) must be at least max_batch_size (16): "
            "each running sequence computes one token a step.",
        ),
        (["--redis-url", "localhost"], "redis_url must begin with redis://, rediss:// or unix://."),
        (["--shard-addresses", "one:1"], "shard_addresses must be tcp://host:port, not 'one:1'."),
        (
            ["--shard-addresses", "tcp://one:1"],
            "shard_addresses needs shard_secret_file: shards on other hosts ask for it.",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence_with_field_value_and_bound(argv, sentence):
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("field", ["model_id", "served_model_name", "deployment"])
@pytest.mark.parametrize("name", ["a\nb", "a\r\nSet-Cookie: x", "a\x00", " ", "a\u2028b"])
def test_a_name_is_one_line(field, name):
    with pytest.raises(ConfigError, match=f"{field} must be a name in one line"):
        read(**{field.upper(): name})
    kept = getattr(read(**{field.upper(): "modèle 模型"}), field)
    assert kept == (("modèle 模型",) if field == "served_model_name" else "modèle 模型")


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("someone/poet", "someone/poet"),
        ("/home/me/models/poet", "poet"),
        ("/home/me/models/poet/", "poet"),
        ("~/poet", "poet"),
        ("../poet", "poet"),
        ("models/poet.gguf", "poet"),
        ("/", "model"),
    ],
)
def test_clients_are_not_told_where_a_model_lies(model_id, name):
    assert Config(model_id=model_id).model_name == name
    named = Config(model_id=model_id, served_model_name=("bard", "poet"))
    assert named.model_names[:2] == ("bard", "poet")
    assert named.model_name == "bard"


@pytest.mark.parametrize(
    ("model_id", "known"),
    [
        ("someone/poet", "someone/poet"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("~/hub/models--someone--po--et/snapshots/abc", "someone/po--et"),
        ("./someone/poet", None),
        ("/models/poet", None),
        ("models/poet.gguf", None),
        ("tests/router", None),  # a folder here
        ("random:opt-1.3b", None),
    ],
)
def test_the_hub_id_of_a_model_is_one_of_its_names(model_id, known):
    assert hub_id(model_id) == known
    names = Config(model_id=model_id, served_model_name=("bard",)).model_names
    assert names == (("bard",) if known is None else ("bard", known))


@pytest.mark.parametrize("kind", ["api", "admin"])
def test_a_key_may_come_from_a_file(kind, tmp_path):
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    config = read_config([f"--{kind}-key-file", str(file)], {})
    assert getattr(config, f"{kind}_key") == "s3cret"
    assert getattr(config, f"{kind}_key_file") is None
    for text in ("", " \n", "two\nlines"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"{kind}_key_file .* must hold the key, in one line"):
            read_config([f"--{kind}-key-file", str(file)], {})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_config([f"--{kind}-key-file", str(tmp_path / "absent")], {})
    with pytest.raises(ConfigError, match="has no use with"):
        read_config([f"--{kind}-key-file", str(file), f"--{kind}-key", "x"], {})
    for key in ("", " x", "a\nb"):
        with pytest.raises(ConfigError, match=f"{kind}_key must be one line"):
            read_config([f"--{kind}-key", key], {})


def test_what_is_secret_is_taken_out_of_the_environment_and_told_of_on_the_command_line():
    environment = {"API_KEY": "a", "ADMIN_KEY": "b", "REDIS_URL": "redis://c", "PORT": "1"}
    options.take_secrets(Config, environment)
    assert environment == {"PORT": "1"}
    argv = ["--api-key=a", "--port", "1", "--redis-url", "redis://c", "--api-key-file", "x"]
    assert options.shown_secrets(Config, argv) == ["--api-key", "--redis-url"]


def test_an_error_does_not_tell_a_secret(toml):
    for line in ("api_key = 12345", 'api_key = "12345 "', 'redis_url = "12345"'):
        with pytest.raises(ConfigError) as caught:
            read(file=toml(line))
        assert "12345" not in str(caught.value)


def test_the_sentence_says_where_a_wrong_value_came_from(toml):
    with pytest.raises(ConfigError, match=r"not 70000\. \(from PORT of the environment\)"):
        read(PORT="70000")
    file = toml("port = 70000")
    with pytest.raises(ConfigError, match=rf"not 70000\. \(from {file}\)"):
        read(file=file)


def test_a_file_with_a_wrong_type_an_unknown_key_or_no_toml_in_it(toml, tmp_path):
    with pytest.raises(ConfigError, match="json_output must be true or false, not 2"):
        read(file=toml("json_output = 2"))
    with pytest.raises(ConfigError, match="port must be a whole number, not True"):
        read(file=toml("port = true"))
    with pytest.raises(ConfigError, match=r"sets prot, which is no setting; did you mean port\?"):
        read(file=toml("prot = 1"))
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read(file=toml("port: 1"))
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read(file=tmp_path / "absent.toml")


def test_an_unknown_flag_is_one_line_with_a_guess(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--max-batch-sise", "3")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "did you mean --max-batch-size?" in said


def test_help_shows_every_flag_in_its_group(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    serving = "Model", "Shards", "Early exit", "Batching and memory"
    groups = (*serving, "Limits", "HTTP", "Security", "Telemetry", "Operation")
    places = [text.index(f"\n{group}:\n") for group in groups]
    assert places == sorted(places)
    assert all(option.flag_name in text for option in options.options_of(Config))


def test_on_a_cpu_one_shard_has_all_cores_and_a_gib_of_cache():
    config = Config().settle(CPU_BOX)
    assert (config.device, config.num_shards, config.num_threads) == ("cpu", 1, 8)
    assert (config.kv_cache_bytes, config.max_batch_size, config.dtype) == (GIB, 64, "auto")


def test_cores_are_shared_out_and_never_none():
    assert Config(num_shards=3).settle(CPU_BOX).num_threads == 2
    assert Config(num_shards=16).settle(CPU_BOX).num_threads == 1


def test_with_gpus_each_has_a_shard_and_the_cache_takes_what_is_free(tmp_path):
    config = Config().settle(GPU_BOX)
    assert (config.device, config.num_shards, config.kv_cache_bytes) == ("cuda", 4, None)
    assert [config.shard_config(tmp_path, shard).device for shard in range(2)] == ["cuda:0", "cuda:1"]


def test_blocks_are_of_the_devices_size_unless_it_was_given(tmp_path):
    for given, machine, block_size in ((None, CPU_BOX, 16), (None, GPU_BOX, 256), (64, GPU_BOX, 64)):
        asked = Config(block_size=given).settle(machine).shard_config(tmp_path, 0)
        assert asked.block_tokens == block_size


def test_what_was_given_is_kept_when_settled():
    given = Config(device="cpu", num_shards=2, num_threads=3, max_batch_size=700, kv_cache_bytes=GIB // 2)
    config = given.settle(GPU_BOX)
    assert (config.device, config.num_shards, config.num_threads) == ("cpu", 2, 3)
    assert (config.max_batch_size, config.kv_cache_bytes) == (700, GIB // 2)
    assert config.max_batch_prefill_tokens >= 700


def test_more_gpus_than_there_are():
    with pytest.raises(ConfigError, match="num_shards must be at most 4, the number of visible GPUs, not 5"):
        Config(num_shards=5).settle(GPU_BOX)
    with pytest.raises(ConfigError, match="device is cuda, but no GPU can be used here"):
        Config(device="cuda").settle(CPU_BOX)


def test_shards_elsewhere_count_as_shards_and_need_a_device():
    addresses = ("tcp://one:1", "tcp://two:2")
    config = Config(shard_addresses=addresses, shard_secret_file="secret", device="cuda")
    assert config.settle(CPU_BOX).num_replicas == 2
    with pytest.raises(ConfigError, match="device must be given with shard_addresses"):
        Config(shard_addresses=addresses, shard_secret_file="secret").settle(CPU_BOX)
    with pytest.raises(ConfigError, match=r"num_shards \(3\) must be the number of shard_addresses \(2\)"):
        Config(shard_addresses=addresses, shard_secret_file="secret", num_shards=3)


def test_a_shard_is_asked_for_what_was_settled(tmp_path):
    config = Config(num_layers=5, dtype="float32", max_total_tokens=99, block_size=8).settle(CPU_BOX)
    asked = config.shard_config(tmp_path, 0)
    assert (asked.model, asked.device, asked.dtype, asked.num_layers) == (str(tmp_path), "cpu", "float32", 5)
    assert (asked.max_total_tokens, asked.block_size, asked.max_batch_tokens) == (99, 8, 512)


def test_the_machines_own_name_in_hostname_is_not_an_address_to_listen_on(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "3f2a9c")
    assert read_config(["--device", "cpu"], {"HOSTNAME": "3f2a9c"}).hostname is None
    assert read_config(["--device", "cpu"], {"HOSTNAME": "10.1.2.3"}).hostname == "10.1.2.3"


GARBAGE = [
    "",
    " ",
    "x",
    "-1",
    "1e400",
    "nan",
    "-inf",
    "9" * 400,
    "é",
    "~nobody/x",
    "/tmp",
    "a,,b",
    "tcp://h:99999",
    "\udcff",
]
GARBAGE_IN_TOML = [
    "-1",
    "nan",
    "true",
    '"x"',
    "[1]",
    '["a", 1]',
    "{a = 1}",
    "1979-05-27",
    "9" * 30,
    '"\\u0000"',
]


@pytest.mark.parametrize("option", options.options_of(Config), ids=lambda option: option.name)
def test_no_garbage_ends_in_anything_but_a_sentence(option, toml, capsys):
    """Or it is taken, as a name may be anything; then whatever is derived from it can be."""
    asked: list[tuple[list[str], dict[str, str]]] = [([f"{option.flag_name}={text}"], {}) for text in GARBAGE]
    asked += [([], {option.env_names[0]: text}) for text in GARBAGE]
    for argv, environment in asked:
        assert "\n" not in told_of(argv, environment)
        assert "\n" not in capsys.readouterr().err.removesuffix("\n")
    for text in GARBAGE_IN_TOML:
        assert "\n" not in told_of(["--config", str(toml(f"{option.name} = {text}"))], {})


def told_of(argv, environment):
    """The sentence with which it is refused; "" if it is taken, or argparse has said why not."""
    try:
        config = read_config(argv, environment)
        begun_with(config, repository_of(config)).settle(CPU_BOX).shard_config(Path("/model"), 0)
    except ConfigError as error:
        return str(error)
    except SystemExit as error:
        assert error.code == 2
    return ""

"""Settings: where they come from, and one line that names the variable when they are wrong."""

import dataclasses
import re
from pathlib import Path

import pytest

from edw.option import SettingsError, load, options
from edw.settings import ConsumerSettings, PoisonSettings, ProducerSettings

ROOT = Path(__file__).parents[2]
KEY = "c2VjcmV0LWtleQ=="
CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={KEY};EndpointSuffix=core.windows.net"
NEEDED = {"AZURE_STORAGE_ACCOUNT_NAME": "acct", "AZURE_QUEUE_NAME": "work", "AZURE_TABLE_NAME": "results"}


def consumer(*argv: str, **environ: str) -> ConsumerSettings:
    return load(ConsumerSettings, argv, NEEDED | environ)


def producer(*argv: str, **environ: str) -> ProducerSettings:
    return load(ProducerSettings, argv, NEEDED | environ)


def poison(*argv: str, **environ: str) -> PoisonSettings:
    return load(PoisonSettings, argv, NEEDED | environ)


def refusal(*argv: str, settings: type = ConsumerSettings, **environ: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load(settings, argv, {name: value for name, value in (NEEDED | environ).items() if value})
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_names_alone_are_enough() -> None:
    settings = consumer()
    assert settings.queue_endpoint == "https://acct.queue.core.windows.net"
    assert settings.table_endpoint == "https://acct.table.core.windows.net"
    assert settings.poison_queue_name == "work-poison"


def test_a_flag_wins_over_its_variable_and_a_variable_over_the_default() -> None:
    assert consumer().concurrency == 64
    assert consumer(EDW_CONCURRENCY="7").concurrency == 7
    assert consumer("--concurrency", "9", EDW_CONCURRENCY="7").concurrency == 9


def test_a_flag_can_take_back_a_switch() -> None:
    assert consumer("--drain").drain
    assert not consumer("--drain", "false", EDW_DRAIN="true").drain


def test_an_empty_input_is_not_taken_for_none() -> None:
    assert refusal("--input", "", settings=ProducerSettings) == "--input (EDW_INPUT): '' is empty"


def test_a_choice_is_taken_in_any_case() -> None:
    assert consumer("--log-level", "DEBUG").log_level == "debug"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert consumer(EDW_CONCURRENCY="").concurrency == 64


def test_clouds_and_endpoints_of_their_own() -> None:
    china = consumer(AZURE_STORAGE_ENDPOINT_SUFFIX="core.chinacloudapi.cn")
    assert china.queue_endpoint == "https://acct.queue.core.chinacloudapi.cn"
    private = consumer(AZURE_STORAGE_QUEUE_ENDPOINT="https://10.0.0.4:10001/acct/")
    assert private.queue_endpoint == "https://10.0.0.4:10001/acct"


def test_all_missing_variables_are_named() -> None:
    missing = refusal(AZURE_QUEUE_NAME="", AZURE_TABLE_NAME="")
    assert "AZURE_QUEUE_NAME" in missing
    assert "AZURE_TABLE_NAME" in missing


def test_an_account_or_a_connection_string_is_needed() -> None:
    missing = refusal(AZURE_STORAGE_ACCOUNT_NAME="")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in missing
    assert "AZURE_STORAGE_CONNECTION_STRING" in missing
    table = refusal(AZURE_STORAGE_ACCOUNT_NAME="", AZURE_STORAGE_QUEUE_ENDPOINT="https://host")
    assert "AZURE_STORAGE_TABLE_ENDPOINT" in table


def test_the_producer_needs_no_table() -> None:
    assert load(ProducerSettings, [], {"AZURE_STORAGE_ACCOUNT_NAME": "acct", "AZURE_QUEUE_NAME": "work"})


def test_the_poison_program_needs_no_table_and_has_no_encoding() -> None:
    assert poison("list", AZURE_TABLE_NAME="", EDW_MESSAGE_ENCODING="rot13").poison_queue_name == "work-poison"
    assert "--message-encoding" in refusal("list", "--message-encoding", "text", settings=PoisonSettings)


def test_an_argument_is_given_on_the_command_line_alone_before_or_behind_the_command() -> None:
    for argv in (["requeue", "--json", "--reason", "not JSON"], ["--reason", "not JSON", "--json", "requeue"]):
        settings = poison(*argv, EDW_YES="true", YES="true")
        assert (settings.command, settings.json, settings.yes, settings.reason) == ("requeue", True, False, "not JSON")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: list|requeue|purge (--help explains every setting)"),
        (["drop"], "list|requeue|purge: 'drop' is not one of list, requeue, purge"),
        (["list", "purge"], "unrecognized arguments: purge (--help explains every setting)"),
        (["list", "--reason", ""], "--reason: '' is empty"),
        (["list", "--yes=no"], "argument --yes: ignored explicit argument 'no' (--help explains every setting)"),
    ],
)
def test_a_missing_or_wrong_argument_is_refused_by_its_name(argv: list[str], said: str) -> None:
    assert refusal(*argv, settings=PoisonSettings) == said


def test_help_of_the_poison_program_has_its_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        poison("--help")
    shown = capsys.readouterr().out
    assert "[--help] list|requeue|purge [--setting VALUE ...]" in shown
    assert "\nrequeue and purge say how many" in shown, "without the indentation of the source"
    assert "Exit code 1 means that not all" in shown


@pytest.mark.parametrize("name", ["Work", "my_queue", "ab", "a" * 64, "-work", "work-", "my--queue", "q.q", "wörk"])
def test_a_queue_name_that_breaks_azures_rules_is_refused_with_the_rule(name: str) -> None:
    assert re.match(r"AZURE_QUEUE_NAME: '.*' is not a queue name: 3 to 63 lowercase", refusal(AZURE_QUEUE_NAME=name))


@pytest.mark.parametrize("name", ["1results", "my-results", "my_results", "ab", "a" * 64, "tables", "Tables"])
def test_a_table_name_that_breaks_azures_rules_is_refused_with_the_rule(name: str) -> None:
    assert re.match(r"AZURE_TABLE_NAME: '.*' is not a table name: 3 to 63 letters", refusal(AZURE_TABLE_NAME=name))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AZURE_STORAGE_ACCOUNT_NAME", "My-Account"),
        ("AZURE_STORAGE_QUEUE_ENDPOINT", "acct.queue.core.windows.net"),
        ("AZURE_STORAGE_TABLE_ENDPOINT", "ftp://host"),
        ("AZURE_STORAGE_TABLE_ENDPOINT", "http://host"),
        ("AZURE_STORAGE_TABLE_ENDPOINT", "HTTP://host"),
        ("AZURE_STORAGE_TABLE_ENDPOINT", "https://host:99999"),
        ("AZURE_STORAGE_TABLE_ENDPOINT", "https://user@host"),
        ("AZURE_STORAGE_ENDPOINT_SUFFIX", "https://core.windows.net"),
        ("EDW_POISON_QUEUE_NAME", "Bad"),
        ("EDW_POISON_QUEUE_NAME", "work"),
        ("EDW_MESSAGE_ENCODING", "rot13"),
        ("EDW_LOG_LEVEL", "loud"),
        ("EDW_LOG_FORMAT", "xml"),
        ("EDW_CONCURRENCY", "0"),
        ("EDW_CONCURRENCY", "1001"),
        ("EDW_CONCURRENCY", "many"),
        ("EDW_CONCURRENCY", "1.5"),
        ("EDW_CONCURRENCY", "9" * 5000),
        ("EDW_CONCURRENCY", "--5"),
        ("EDW_CONCURRENCY", "²"),
        ("EDW_VISIBILITY_TIMEOUT", "4"),
        ("EDW_VISIBILITY_TIMEOUT", "604801"),
        ("EDW_MAX_DEQUEUE_COUNT", "0"),
        ("EDW_POLL_INTERVAL_MIN", "0"),
        ("EDW_POLL_INTERVAL_MIN", "6"),  # above the default of the upper bound
        ("EDW_POLL_INTERVAL_MAX", "nan"),
        ("EDW_HTTP_PORT", "65536"),
        ("EDW_DRAIN", "perhaps"),
    ],
)
def test_a_wrong_value_of_the_consumer_is_refused_by_name(variable: str, value: str) -> None:
    assert refusal(**{variable: value}).startswith(f"{variable}:")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EDW_COUNT", "0"),
        ("EDW_RATE", "-1"),
        ("EDW_RATE", "inf"),
        ("EDW_DURATION", "0"),
        ("EDW_TIME_TO_LIVE", "0"),
        ("EDW_TIME_TO_LIVE", "-2"),
    ],
)
def test_a_wrong_value_of_the_producer_is_refused_by_name(variable: str, value: str) -> None:
    assert refusal(settings=ProducerSettings, **{variable: value}).startswith(f"{variable}:")


def test_a_wrong_flag_is_refused_by_flag_and_variable() -> None:
    assert refusal("--concurrency", "0") == "--concurrency (EDW_CONCURRENCY): '0' is not a whole number from 1 to 1000"


@pytest.mark.parametrize("argv", [["--nonsense"], ["--concurrency"], ["leftover"], ["--conc", "5"]])
def test_wrong_usage_is_one_line(argv: list[str]) -> None:
    assert "--help" in refusal(*argv)


def test_a_queue_name_too_long_for_its_poison_queue_asks_for_a_name() -> None:
    assert refusal(AZURE_QUEUE_NAME="q" * 60).startswith("EDW_POISON_QUEUE_NAME: not set")
    assert consumer(AZURE_QUEUE_NAME="q" * 60, EDW_POISON_QUEUE_NAME="bad-ones").poison_queue_name == "bad-ones"


@pytest.mark.parametrize(
    "value",
    [
        CONNECTION,
        CONNECTION + ";",
        "UseDevelopmentStorage=true",
        "QueueEndpoint=http://h/a;TableEndpoint=http://h/a;SharedAccessSignature=sv=1&sig=s%3D",
    ],
)
def test_connection_strings_of_every_kind_are_taken(value: str) -> None:
    assert consumer(AZURE_STORAGE_CONNECTION_STRING=value, AZURE_STORAGE_ACCOUNT_NAME="").storage_connection_string


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        f"AccountName=acct;AccountKey={KEY[:-2]}",
        "AccountName=acct",
        f"AccountName=;AccountKey={KEY}",
        f"AccountName=acct;AccountKey={KEY};;Broken",
        f"SharedAccessSignature={KEY}",
        f"AccountName=acct;AccountKey={KEY};QueueEndpoint=http://host:99999/acct",
    ],
)
def test_a_malformed_connection_string_is_refused_without_being_repeated(value: str) -> None:
    text = refusal(AZURE_STORAGE_CONNECTION_STRING=value)
    assert text.startswith("AZURE_STORAGE_CONNECTION_STRING:")
    assert value not in text
    assert KEY[:-2] not in text


def test_the_connection_string_is_in_no_representation_and_on_no_command_line() -> None:
    assert KEY not in repr(consumer(AZURE_STORAGE_CONNECTION_STRING=CONNECTION))
    assert "connection-string" in refusal("--storage-connection-string", CONNECTION)


@pytest.mark.parametrize("settings", [ConsumerSettings, ProducerSettings, PoisonSettings])
def test_help_and_the_readme_have_every_setting_with_its_variable_and_default(
    settings: type, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load(settings, ["--help"], {})
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    readme = (ROOT / "README.md").read_text()
    for option in options(settings).values():
        assert option.explained in shown
        assert option.default_text in option.explained
        if option.variable:
            assert option.variable in option.explained
        variable = f"`{option.variable}`" if option.variable else "none"
        rows = [line for line in readme.splitlines() if line.startswith(f"| {variable} |")]
        flag = "none: a secret" if option.secret else f"`{option.flag}`".replace("|", r"\|")
        assert any(f"| {flag} |" in row and f"| {option.default_text} |" in row for row in rows)


def test_the_example_file_names_only_variables_that_exist() -> None:
    programs = (ConsumerSettings, ProducerSettings, PoisonSettings)
    known = {option.variable for settings in programs for option in options(settings).values()}
    named = set(re.findall(r"^#? ?((?:AZURE|EDW)_\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert {"AZURE_QUEUE_NAME", "AZURE_TABLE_NAME", "AZURE_STORAGE_ACCOUNT_NAME"} <= named <= known


def test_settings_cannot_change_after_they_are_read() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        consumer().concurrency = 5  # type: ignore[misc]


def test_the_rate_is_one_a_second_and_an_input_is_sent_as_fast_as_it_goes() -> None:
    assert producer().rate == 1
    assert producer("--input", "-").rate == 0
    assert producer("--input", "-", "--rate", "2").rate == 2

import pytest

from pipeline.tracking.secrets import (
    HIDDEN,
    names_a_secret,
    redact,
    redact_all,
    redact_arguments,
    redact_file,
)

NO_ENVIRONMENT: dict[str, str] = {}


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD"),
        *("WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "PGPASSWORD"),
        *("MYSQL_PWD", "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "token", "sig"),
        *("X-Amz-Signature", "apiKey", "ingest.password"),
    ],
)
def test_names_of_secrets(name):
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name", ["PATH", "data.max_text_tokens", "tokens", "tokenizer", "secretary", "keys", "design"]
)
def test_names_of_none(name):
    assert not names_a_secret(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pw@h.example/x", "https://***@h.example/x"),
        ("postgresql://u:p@ss@db/m", "postgresql://***@db/m"),
        ('["https://h","b@c"]', '["https://h","b@c"]'),
        ("see s3://KEY:SECRET@bucket/a and b", "see s3://***@bucket/a and b"),
        ("postgresql+psycopg2://u:p%40w@db:5432/m", "postgresql+psycopg2://***@db:5432/m"),
        ("https://h/x?token=abc&n=3", "https://h/x?token=***&n=3"),
        ("https://h/x?n=3&X-Amz-Signature=ab%2Bc#f", "https://h/x?n=3&X-Amz-Signature=***#f"),
        ("https://h/x?AWSAccessKeyId=AK&Expires=1", "https://h/x?AWSAccessKeyId=***&Expires=1"),
        ("https://h/x?sv=1&sig=abc", "https://h/x?sv=1&sig=***"),
        ("mail me@h.example at 5:30", "mail me@h.example at 5:30"),
        ("https://h/x?max_tokens=32", "https://h/x?max_tokens=32"),
    ],
)
def test_urls(text, expected):
    assert redact(text, NO_ENVIRONMENT) == expected


def test_secrets_of_the_environment_are_hidden_wherever_they_stand():
    environment = {"HF_TOKEN": "hf_12345678", "SHORT_TOKEN": "abc", "PLAIN": "value_of_plain"}
    assert redact("a hf_12345678b abc value_of_plain", environment) == "a ***b abc value_of_plain"


def test_the_working_folder_is_no_password():
    environment = {"PWD": "/home/me/runs", "OLDPWD": "/home/me", "DB_PWD": "/home/me/runs/demo"}
    assert redact("/home/me/runs/other", environment) == "/home/me/runs/other"
    assert redact("/home/me/runs/demo", environment) == HIDDEN


def test_lines_under_a_secret_name_in_a_file():
    text = (
        "root: /data\n"
        "store:\n"
        "  api_key: 'abc def'\n"
        "  max_tokens: 5\n"
        "  token: null\n"
        "  - password: x: y\n"
        '  "secret": "abc",\n'
    )
    assert redact_file(text, NO_ENVIRONMENT) == (
        "root: /data\n"
        "store:\n"
        '  api_key: "***"\n'
        "  max_tokens: 5\n"
        "  token: null\n"
        '  - password: "***"\n'
        '  "secret": "***",\n'
    )


def test_arguments_of_a_command():
    arguments = ["train", "--hf-token", "abc", "--api-key=d", "a.password=e", "x={token: f, n: 1}"]
    arguments += ["--flag", "root=https://me:pw@h/x", "token"]
    assert redact_arguments(arguments, NO_ENVIRONMENT) == [
        *("train", "--hf-token", HIDDEN, f"--api-key={HIDDEN}", f"a.password={HIDDEN}"),
        *("x={token: ***, n: 1}", "--flag", "root=https://***@h/x", "token"),
    ]


def test_nested_values_and_values_under_secret_names():
    value = {"a": [{"url": "https://x:y@h/"}, 3, None], "password": "p", "api_key": "", "n": 1.5}
    assert redact_all(value, NO_ENVIRONMENT) == {
        "a": [{"url": f"https://{HIDDEN}@h/"}, 3, None],
        "password": HIDDEN,
        "api_key": "",
        "n": 1.5,
    }

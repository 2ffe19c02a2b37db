import resource
import subprocess
import sys

from tests.helpers.hostile_web import in_turn, response

CODE = """
import resource
from data_prep.fetch.connection import allow_many_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
allow_many_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    soft = 16_384 if hard == resource.RLIM_INFINITY else min(16_384, hard)
    assert done.stdout.split() == [str(soft), str(hard)]


def test_informational_answers_are_counted_for_each_request_anew(web, fetch_all):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    web.pages["/"] = in_turn(*[hints * 16 + response()] * 3, hints * 17 + response())
    found = fetch_all([web.url(f"/?{i}") for i in range(4)], per_host=1)
    assert [str(f.status) for f in found] == ["ok"] * 3 + ["malformed_response"]
    assert found[3].error == "not HTTP: more than 16 informational responses"
    assert web.connections["127.0.0.2"] == 1

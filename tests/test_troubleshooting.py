"""Every error that a user can meet, collected from the code, has a row in docs/troubleshooting.md, and no row is dead.

A message is reduced to its constant words, with … for what varies. A row quotes the beginning of one.
"""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

from minetorch import errors
from minetorch.checkpoint.store import Store
from minetorch_launch import errors as launch_errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
FILES = sorted([*ROOT.glob("minetorch/**/*.py"), *ROOT.glob("launch/**/*.py")])
FAILURES = ROOT / "launch/minetorch_launch/failures"

ERRORS = {
    name
    for module in (errors, launch_errors)
    for name, member in vars(module).items()
    if isinstance(member, type) and issubclass(member, BaseException)
}
LOG_CALLS = {"warning", "error"}

PASSED_ON = {
    "self._stop.result()": "a signal's number",
    "self._failure or self._who_is_here(waited)": "how many nodes have come",
    "self._failure": "the same",
    "errors.py: message": "the message of a class with its own constructor",
    "message['error']": "why a process cannot be started, from another process",
    "int(error.sigval)": "a signal's number",
    "news['signum']": "a signal's number",
    "self.stop": "a signal's number",
    "signum": "a signal's number",
    "os.EX_TEMPFAIL": "an exit code",
    "outcome.failure": "the report, which is made in failures/report.py",
    "str(error)": "an error of the launcher, in a notebook",
    "refusal": "what the script was refused for, in another process",
    "f'{self.shown}: {self.hide(told)}'": "a database's own words",
    "f'{self.url}: {known}'": "which graphs a run has",
    "'%s:%d: %s: %s'": "a warning of Python",
}
"""What says nothing by itself, and whose words it hands on."""


class Source:
    """A file, and what its expressions can say."""

    def __init__(self, path):
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = {
            node.name: node for node in ast.walk(self.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }

    def calls(self):
        """Each call, and the function that it stands in, or the file."""
        waiting = [(self.tree, self.tree)]
        while waiting:
            node, scope = waiting.pop()
            if isinstance(node, ast.Call):
                yield node, scope
            inner = node if isinstance(node, ast.FunctionDef) else scope
            waiting += [(child, inner) for child in ast.iter_child_nodes(node)]

    def said(self, node, scope, depth=0):
        """The texts that an expression can have, each reduced to its constant words."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value]
        if isinstance(node, ast.JoinedStr):
            parts = [self.said(part, scope, depth) for part in node.values]
            return ["".join(words) for words in itertools.product(*parts)]
        if isinstance(node, ast.FormattedValue):
            is_constant = isinstance(node.value, ast.Name) and node.value.id.isupper()
            is_sentence = isinstance(node.value, ast.Call) and _name(node.value) == "unknown_name"
            return self.said(node.value, self.tree, depth) if is_constant or is_sentence else ["…"]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            both = self.said(node.left, scope, depth), self.said(node.right, scope, depth)
            return ["".join(words) for words in itertools.product(*both)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return self.said(node.left, scope, depth)
        if isinstance(node, ast.IfExp):
            return self.said(node.body, scope, depth) + self.said(node.orelse, scope, depth)
        if depth < 3 and isinstance(node, ast.Call):
            if _name(node) == "unknown_name":
                (kind,) = self.said(node.args[0], scope, depth)
                return [f"There is no {kind} …"]
            if _name(node) == "join" and isinstance(node.args[0], ast.List):
                return self.said(node.args[0].elts[0], scope, depth)
            function = self.functions.get(_name(node))
            if function is not None:
                returns = [part.value for part in ast.walk(function) if isinstance(part, ast.Return) and part.value]
                return [text for value in returns for text in self.said(value, function, depth + 1)]
        if depth < 3 and isinstance(node, ast.Name):
            given = [
                part.value
                for part in ast.walk(scope)
                if isinstance(part, (ast.Assign, ast.NamedExpr))
                for target in (part.targets if isinstance(part, ast.Assign) else [part.target])
                if isinstance(target, ast.Name) and target.id == node.id
            ]
            given += _defaults(scope, node.id)
            return [text for value in given for text in self.said(value, scope, depth + 1)] or ["…"]
        return ["…"]

    def errors(self):
        """For each error that is made here, and each warning in a log: where, its source, and what it says."""
        for call, scope in self.calls():
            name = _name(call)
            is_error = name in ERRORS or (name == "__init__" and self.path.name == "errors.py")
            is_log = name in LOG_CALLS and isinstance(call.func, ast.Attribute)
            if (is_error or is_log) and call.args:
                texts = [_reduced(text, is_log) for text in self.said(call.args[0], scope)]
                yield f"{self.path.relative_to(ROOT)}:{call.lineno}", ast.unparse(call.args[0]), texts

    def strings(self):
        """Whatever a string of this file can say."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Constant, ast.JoinedStr)) and (isinstance(node, ast.JoinedStr) or _is_text(node)):
                for text in self.said(node, self.tree):
                    yield _reduced(text, False)
                    yield _reduced(text, True)


def _name(call):
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _defaults(scope, parameter):
    if not isinstance(scope, ast.FunctionDef):
        return []
    given = scope.args.defaults
    named = scope.args.args[len(scope.args.args) - len(given) :]
    return [value for name, value in zip(named, given, strict=True) if name.arg == parameter]


def _is_text(node):
    return isinstance(node.value, str) and " " in node.value


def _reduced(text, is_format):
    text = re.sub(r"%[sdrgf]", "…", text) if is_format else text
    return re.sub(r"…+", "…", " ".join(text.split()))


def _words(text):
    return len(re.findall(r"[A-Za-z]{2,}", text))


def hints():
    """What a failure's report says of its cause, and why there was no restart."""
    for file in ("report.py", "restart_policy.py", "oom.py"):
        source = Source(FAILURES / file)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef) and node.name in (
                "_cause",
                "_none_left",
                "_start_error",
                "_repetition",
            ):
                for part in ast.walk(node):
                    if isinstance(part, ast.Return) and part.value is not None:
                        yield f"{file}:{part.lineno}", source.said(part.value, node)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").endswith("_HINT"):
                yield f"{file}:{node.lineno}", source.said(node.value, source.tree)


@functools.cache
def messages():
    """Where each message is made, and the message."""
    found = []
    for source in map(Source, FILES):
        for place, code, texts in source.errors():
            if code not in PASSED_ON and f"{source.path.name}: {code}" not in PASSED_ON:
                found += [(place, text) for text in [text for text in texts if _words(text)] or texts]
    for place, texts in hints():
        found += [(place, _reduced(text, False)) for text in texts if _words(text)]
    return found


def rows():
    """The beginnings of messages that the page quotes."""
    found = re.findall(r"^\| (`+) ?(.+?) ?\1 \|", PAGE, re.MULTILINE)
    return [_reduced(text.replace("\\|", "|"), False).rstrip("…").rstrip() for _, text in found]


def test_every_message_says_something_by_itself():
    """A message that is made elsewhere is one that this test cannot see."""
    silent = [f"{place}: {text!r}" for place, text in messages() if not _words(text)]
    assert not silent, f"Say it where it is raised, or name in PASSED_ON whose words it hands on: {silent}"


def test_every_message_has_a_row():
    known = rows()
    missing = {text: place for place, text in messages() if not any(text.startswith(row) for row in known)}
    table = "\n".join(f"| `{text}` | ({place}) |" for text, place in missing.items())
    assert not missing, f"docs/troubleshooting.md lacks these rows; say in each what to do:\n{table}"


def test_no_row_is_dead():
    said = {text for source in map(Source, FILES) for text in source.strings()} | {text for _, text in messages()}
    dead = [row for row in rows() if not any(text.startswith(row) for text in said)]
    assert not dead, f"No message begins like these rows of docs/troubleshooting.md: {dead}"


def test_a_row_is_told_from_others():
    whole = {text for _, text in messages()}
    vague = [row for row in rows() if _words(row) < 2 and row not in whole]
    assert not vague, f"Quote more of these: {vague}"
    assert len({*rows()}) == len(rows())


def test_the_words_for_missing_credentials_are_those_of_the_client(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = Store.open("s3://bucket/runs", {"endpoint_url": "http://127.0.0.1:1", "skip_instance_cache": True})
    with pytest.raises(errors.StorageError) as caught:
        store.list()
    (words,) = re.findall(r"^\| \*(Unable to .*?)\* \|", PAGE, re.MULTILINE)
    assert words in str(caught.value)

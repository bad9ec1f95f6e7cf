"""A local server that answers huggingface_hub as the real hub does: downloads, new repositories, commits."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

TOKEN = "hf_SecretOfTheTests0123456789abcdef"


class StandIn(http.server.ThreadingHTTPServer):
    """The repositories, the requests seen, and the status with which the server refuses everything.

    Attributes:
      repositories: {"user/repo": [{file: content} of each commit]}.
      tags: {("user/repo", tag): number of the commit}.
      private: names of the private repositories.
      refuse: {"download" or "upload": status}.
      seen: (method, path) of each request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.tags, self.stored = {}, {}, {}
        self.private, self.refuse, self.seen, self.messages = set(), {}, [], []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


def commit_name(repo, number):
    return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def knows_user(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self):
        self.server.seen.append((self.command, self.path))
        if status := self.server.refuse.get("download"):
            echo = f"no, {self.headers.get('Authorization')}"  # a careless proxy
            return self.answer(status, {"error": echo})
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commits = self.server.repositories.get(repo)
        if commits is None or (repo in self.server.private and not self.knows_user()):
            return self.answer(401, X_Error_Code="RepoNotFound")
        names = [commit_name(repo, number) for number in range(len(commits))]
        number = self.server.tags.get((repo, urllib.parse.unquote(revision)))
        if revision == "main":
            number = len(commits) - 1
        elif revision in names:
            number = names.index(revision)
        if number is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        content = commits[number].get(file)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=names[number])
        tag = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=names[number])

    do_GET = do_HEAD

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self):
        content = self.body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.stored[oid] = content
        return self.answer(200)

    def do_POST(self):
        body = self.body()
        self.server.seen.append((self.command, self.path))
        if status := self.server.refuse.get("upload"):
            return self.answer(status, {"error": f"no, {self.headers.get('Authorization')}"})
        if not self.knows_user():
            return self.answer(401, {"error": "Invalid username or password."})
        path = urllib.parse.urlsplit(self.path).path
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **entry,
                    "actions": {"upload": {"href": f"{self.server.address}/lfs/{entry['oid']}"}},
                }
                for entry in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        repo = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in path:
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        return self.answer(404)

    def create(self, wanted):
        repo = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.address}/{repo}", "name": repo}
        if repo in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo", **url})
        self.server.repositories[repo] = []
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.server.private.add(repo)
        return self.answer(200, url)

    def commit(self, repo, lines):
        commits = self.server.repositories[repo]
        files = dict(commits[-1]) if commits else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        commits.append(files)
        oid = commit_name(repo, len(commits) - 1)
        url = f"{self.server.address}/{repo}/commit/{oid}"
        return self.answer(200, {"commitUrl": url, "commitOid": oid, "success": True})


@contextlib.contextmanager
def stand_in(monkeypatch, cache):
    """Run a stand-in, to which huggingface_hub speaks in this process, with an empty cache and no token."""
    from huggingface_hub import constants

    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

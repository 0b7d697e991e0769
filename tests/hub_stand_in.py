"""A local stand-in for the Hub: the requests of huggingface_hub for uploads and downloads."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Serve repositories, each a list of commits, over HTTP. Use it as a context manager."""

    def __init__(self):
        self.repos = {}  # name: list of (sha, {path: bytes})
        self.fetched = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self, status, body=b"", **headers):
                if not isinstance(body, bytes):
                    body = json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.post(self, self.path, body)

            def do_GET(self):
                hub.get(self, self.path.split("?")[0])

            do_HEAD = do_GET  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo, revision="main"):
        """Return the commit of a revision and its files, or None if there is none."""
        commits = self.repos.get(repo, [])
        for sha, files in commits[::-1]:
            if revision in ("main", sha):
                return sha, files
        return None

    def post(self, handler, path, body):
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            known = name in self.repos
            self.repos.setdefault(name, [("0" * 40, {})])
            handler.answer(409 if known else 200, {"url": f"{self.url}/{name}"})
        elif path == "/api/validate-yaml":
            handler.answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/(\w+)", path.split("?")[0]):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            handler.answer(200, {"files": files})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/(\w+)", path.split("?")[0]):
            files = dict(self.files(match[1])[1])
            for line in body.splitlines():
                step = json.loads(line)
                if step["key"] == "file":
                    files[step["value"]["path"]] = base64.b64decode(step["value"]["content"])
                elif step["key"] == "deletedFile":
                    files.pop(step["value"]["path"])
            sha = hashlib.sha1(body).hexdigest()
            self.repos[match[1]].append((sha, files))
            url = f"{self.url}/{match[1]}/commit/{sha}"
            handler.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})
        else:
            handler.answer(404, {"error": path})

    def get(self, handler, path):
        if match := re.fullmatch(r"/api/models/(.+)/tree/(\w+)(/.+)?", path):
            found = self.files(match[1], match[2])
            if found and match[3]:  # no folder below is asked for that is there
                handler.answer(404, X_Error_Code="EntryNotFound")
                return
            if found:
                handler.answer(
                    200,
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": "0"}
                        for name, content in found[1].items()
                    ],
                )
                return
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(\w+))?", path):
            found = self.files(match[1], match[2] or "main")
            if found:
                siblings = [{"rfilename": name} for name in found[1]]
                facts = {"id": match[1], "sha": found[0], "siblings": siblings}
                handler.answer(200, facts | {"private": False, "tags": [], "downloads": 0})
                return
        elif match := re.fullmatch(r"/(.+)/resolve/(\w+)/(.+)", path):
            found = self.files(match[1], match[2])
            if found and match[3] in found[1]:
                content = found[1][match[3]]
                self.fetched.append(match[3])
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                handler.answer(200, content, ETag=etag, X_Repo_Commit=found[0])
                return
            if found:
                handler.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=found[0])
                return
        handler.answer(404, b"", X_Error_Code="RepoNotFound")

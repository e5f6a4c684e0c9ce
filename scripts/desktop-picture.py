#!/usr/bin/env python3
"""What headless Chromium sees of the desktop of a sandbox of image `computer`, as a PNG.

    bhatti create --name desk --image computer --memory 2048 --cpus 2
    bhatti forward desk 6080 16080 &
    scripts/desktop-picture.py http://127.0.0.1:16080/ docs/pictures/computer.png

Needs the Debian packages chromium and python3-websocket.
"""
import base64
import json
import re
import subprocess
import sys
import tempfile
import time

import websocket

ENOUGH_COLOURS = """(() => {
    const screen = document.querySelector('canvas');
    if (!screen || !screen.width) return 0;
    const pixels = screen.getContext('2d').getImageData(0, 0, screen.width, screen.height).data;
    const seen = new Set();
    for (let i = 0; i < pixels.length; i += 4 * 97) seen.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
    return seen.size;
})()"""


def main(url, picture):
    with tempfile.TemporaryDirectory() as profile:
        chromium = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,887", "--remote-debugging-port=0",
             "--remote-allow-origins=*", f"--user-data-dir={profile}", url + "vnc_lite.html?scale=true"],
            stderr=subprocess.PIPE, text=True)
        try:
            for line in chromium.stderr:
                found = re.search(r"ws://[\d.]+:(\d+)/", line)
                if found:
                    break
            take(int(found.group(1)), picture)
        finally:
            chromium.terminate()
            chromium.wait()


def take(port, picture):
    import urllib.request
    pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
    page = next(page for page in pages if page["type"] == "page")
    browser = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=120)

    def call(method, **params):
        browser.send(json.dumps({"id": 1, "method": method, "params": params}))
        while True:
            answer = json.loads(browser.recv())
            if answer.get("id") == 1:
                return answer["result"]

    end = time.monotonic() + 120
    # The desktop is there once it shows more than a plain background.
    while call("Runtime.evaluate", expression=ENOUGH_COLOURS)["result"].get("value", 0) < 40:
        if time.monotonic() > end:
            sys.exit("error: no desktop was shown within 120 s")
        time.sleep(1)
    shot = call("Page.captureScreenshot", format="png")
    with open(picture, "wb") as file:
        file.write(base64.b64decode(shot["data"]))


if len(sys.argv) != 3:
    sys.exit(__doc__)
main(sys.argv[1].rstrip("/") + "/", sys.argv[2])

#!/usr/bin/env python3
"""What a terminal shows while commands are typed into it, as an SVG that moves.

    bhatti serve --listen none & scripts/session-picture.py docs/pictures/session.svg < scripts/session.txt

Each line of standard input is typed into one shell, which finds `bhatti` in PATH. Waiting is shown as long as it was, but
for the time that a person would take to type. Standard library alone.
"""
import html
import os
import pty
import re
import select
import sys
import time

COLUMNS, ROWS = 100, 24
CHARACTER, LINE, MARGIN = 8.4, 19, 16
PROMPT = "$ "
# Between a command's end and the next one, in the picture; and how long the end stays before it begins again.
THINK, STAY = 1.2, 4.0
ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>]|([\r\n\b\x07])|([^\x1b\r\n\b\x07]+)|\x1b")


class Screen:
    """As much of a terminal as is needed here: lines, a cursor, and what erases."""

    def __init__(self):
        self.lines, self.row, self.column = [""], 0, 0

    def feed(self, text):
        for arguments, command, control, words in ESCAPE.findall(text):
            count = int(arguments) if arguments.isdigit() else 1
            if words:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + words + line[self.column + len(words) :]
                self.column += len(words)
            elif control == "\r":
                self.column = 0
            elif control == "\b":
                self.column = max(0, self.column - 1)
            elif control == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif command == "K":
                kept = "" if arguments == "2" else self.lines[self.row][: self.column]
                self.lines[self.row] = kept
            elif command == "A":
                self.row = max(0, self.row - count)
            elif command == "B":
                self.row = min(len(self.lines) - 1, self.row + count)
            elif command == "G":
                self.column = count - 1

    def shown(self):
        return tuple(line.rstrip()[:COLUMNS] for line in self.lines[-ROWS:])


def record(commands):
    """Types the commands; what was on the screen from which second on."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(PS1=PROMPT, TERM="xterm", COLUMNS=str(COLUMNS), LINES=str(ROWS), BASH_SILENCE_DEPRECATION_WARNING="1")
        os.execvp("bash", ["bash", "--norc", "--noediting"])
    screen, frames, clock = Screen(), [], 0.0

    def until_prompt(clock):
        """Reads until the shell waits again; how late it is then."""
        begin = time.monotonic()
        while not (screen.column == len(PROMPT) and screen.lines[screen.row] == PROMPT):
            if not select.select([terminal], [], [], 300)[0]:
                sys.exit("session-picture: error: a command says nothing for five minutes")
            screen.feed(os.read(terminal, 65536).decode(errors="replace"))
            frames.append((clock + time.monotonic() - begin, screen.shown()))
        return clock + time.monotonic() - begin

    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    clock = until_prompt(clock)
    for command in commands:
        clock += THINK
        for letter in range(1, len(command) + 1):
            frames.append((clock, screen.shown()[:-1] + (PROMPT + command[:letter],)))
            clock += 0.03
        os.write(terminal, command.encode() + b"\n")
        # Its echo is the first that comes; only then is a prompt the next one.
        while screen.lines[screen.row] == PROMPT:
            screen.feed(os.read(terminal, 65536).decode(errors="replace"))
        frames.append((clock, screen.shown()))
        clock = until_prompt(clock)
    os.write(terminal, b"exit\n")
    os.waitpid(pid, 0)
    return frames, clock


def thinned(frames):
    """At most twenty pictures a second, and each only once."""
    kept = []
    for at, shown in frames:
        if kept and (shown == kept[-1][1] or at - kept[-1][0] < 0.05):
            kept[-1] = (kept[-1][0], shown)
        else:
            kept.append((at, shown))
    return kept


def picture(frames, end):
    rows = max(len(shown) for _, shown in frames)
    width, height = 2 * MARGIN + COLUMNS * CHARACTER, 2 * MARGIN + rows * LINE
    total = end + STAY
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">',
        "<title>A sandbox is created, put to sleep, and woken by the next command</title>",
        '<style>text { font: 14px ui-monospace, "DejaVu Sans Mono", monospace; fill: #d8dee9; white-space: pre }'
        " .typed { fill: #a3be8c }</style>",
        f'<rect width="100%" height="100%" rx="8" fill="#20242c"><animate id="again" attributeName="opacity" from="1" to="1" '
        f'begin="0s;again.end" dur="{total:.2f}s"/></rect>',
    ]
    for number, (at, shown) in enumerate(frames):
        last = number == len(frames) - 1
        until = total if last else frames[number + 1][0]
        # The end is what is seen where nothing moves.
        hidden, change = ("", f'<set attributeName="visibility" to="hidden" begin="again.begin" dur="{at:.2f}s"/>') if last else (
            ' visibility="hidden"',
            f'<set attributeName="visibility" to="visible" begin="again.begin+{at:.2f}s" dur="{until - at:.2f}s"/>',
        )
        lines = "".join(
            f'<text xml:space="preserve" class="{"typed" if line.startswith(PROMPT) else "said"}" x="{MARGIN}" y="{MARGIN + (row + 1) * LINE - 5}">{html.escape(line)}</text>'
            for row, line in enumerate(shown)
            if line
        )
        out.append(f"<g{hidden}>{change}{lines}</g>")
    return "\n".join(out) + "\n</svg>\n"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    commands = [line.strip() for line in sys.stdin if line.strip()]
    frames, end = record(commands)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(picture(thinned(frames), end))


main()

"""The page and the pictures that a run is written to."""
import datetime, math, os, platform

from machine import ROOT

COLOURS = ["#c0392b", "#2980b9", "#27ae60", "#8e44ad", "#d35400", "#16a085", "#7f8c8d", "#2c3e50", "#f39c12", "#e84393"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 340, 70, 150, 34, 40


def svg(title, unit, x_name, series, y_log=False):
    """Lines or dots of several series, (name, points, is_line) each, in one picture."""
    points = [point for _, dots, _ in series for point in dots]
    if not points:
        return ""
    x_min, x_max = min(x for x, _ in points), max(x for x, _ in points)
    scale = (lambda y: math.log10(max(y, 1e-3))) if y_log else (lambda y: y)
    low = min(scale(y) for _, y in points) if y_log else 0
    high = max(scale(y) for _, y in points)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x, y):
        return LEFT + (x - x_min) / ((x_max - x_min) or 1) * across, TOP + (1 - (scale(y) - low) / ((high - low) or 1)) * down

    bottom = 10**low if y_log else 0
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
             f'<rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="20" font-size="14">{title}</text>',
             f'<text x="4" y="{TOP + 10}">{max(y for _, y in points):.3g} {unit}</text><text x="4" y="{HEIGHT - BOTTOM}">{bottom:.2g}</text>',
             f'<text x="{LEFT}" y="{HEIGHT - 22}">{x_min:.3g}</text><text x="{WIDTH - RIGHT - 60}" y="{HEIGHT - 22}">{x_max:.3g} {x_name}</text>',
             f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="black"/>']
    for number, (label, dots, is_line) in enumerate(series):
        colour, drawn = COLOURS[number % len(COLOURS)], [place(*dot) for dot in dots]
        if is_line:
            parts.append('<polyline fill="none" stroke="%s" points="%s"/>' % (colour, " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)))
        else:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1" fill="{colour}"/>' for x, y in drawn]
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 16 * number + 10}" fill="{colour}">{label}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def thinned(dots, most=230):
    """The slowest of each stretch of time: a late answer must not be left out."""
    dots, step = sorted(dots), max(1, len(dots) // most)
    return [max(dots[at:at + step], key=lambda dot: dot[1]) for at in range(0, len(dots), step)]


def first_of(figures):
    best = min(figures.values())
    return ", ".join(name for name, figure in figures.items() if figure <= best * 1.02 + 1e-9)


def write(field, versions, missing, command, minutes, load):
    folder = os.path.join(ROOT, "docs/field")
    os.makedirs(folder, exist_ok=True)
    rows = field.rows
    lines = list(dict.fromkeys(line for row in rows.values() for line in row))
    lines.sort(key=lambda line: ("own memory" not in line, 0))
    head = [name + ("*" if field.peers[name].own_workers else "") for name in rows]
    table = ["| | " + " | ".join(head) + " | first |", "| --- |" + " ---: |" * len(head) + " --- |"]
    for line in lines:
        figures = {name: row[line] for name, row in rows.items() if line in row}
        cells = [f"{figures[name]:.3g}" if name in figures else "–" for name in rows]
        table.append(f"| {line} | " + " | ".join(cells) + f" | {first_of(figures)} |")
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "?")
    page = f"""# Panzer beside what people use instead

Measured by `{command}` on {datetime.date.today()}, in {minutes:.0f} minutes: {os.cpu_count()} CPUs ({cpu}), Linux
{platform.release()}. The load of the machine was {load:.1f} before it began{"" if load < 2 else ": it was busy, so all times are rough, and only large differences say something"}.

{chr(10).join(table)}

Less is better in every line.

- A time is a ratio to a bare floor in the same run: a loop of posix_spawn over the same worker, or `cat` for logs.
- `*` runs workers of its own, such as Python's, which are larger and slower than the field's: only their own lines of
  memory, failed requests and idling say something about the supervisor.
- Own memory is the PSS of all processes that are not workers. With 8, 2 and 100 workers it is taken 34 s after the start.
- s6, runit and pm2 hold no socket for this program: each worker listens by itself, with SO_REUSEPORT. Server::Starter
  runs one worker, which forks the others: its figures are for both.
- A broken release is one that exits with 1 at once, or whose configuration is wrong.
- A killed worker takes the connection with it that it was about to answer.

Where panzer is not first:

- Memory at 2 workers: runit and s6 are a few kB of C for each worker, and hold no socket, no release and no status. They
  have a process for each worker, so panzer is below them from eight workers on.
- Start and respawn: Server::Starter's worker forks the others without an exec, and the floor executes each. Of a start of
  8, panzer's own execution, command line and sockets are a third; benches/README.md says what was tried. The floor of a
  respawn is a process that was just started in a busy loop, with all that it uses in the processor's caches; a supervisor
  has slept before, and its worker has to be killed first. Runit and s6 start a process for each worker at once.
- Logs: s6-log splits no streams, and takes lines from one pipe.
- p99 under load: below a millisecond, the order changes from run to run. That of nginx is nginx's as a server.

Versions: {'; '.join(f'{name}: {version}' for name, version in versions.items())}.
Not installed, and left out: {', '.join(missing) or 'none'}.

![latency across four reloads](latency.svg)

![own memory over workers](memory.svg)
"""
    chosen = [name for name in ("panzer", "supervisord", "circus", "Server::Starter", "einhorn", "pm2", "s6") if name in field.curves]
    dots = [(name, thinned(field.curves[name][0]), False) for name in chosen]
    counts = (2, 8, 100)
    memory = [(name, [(count, row[line]) for count in counts if (line := f"own memory at {count} workers, MB") in row], True)
              for name, row in rows.items() if not field.peers[name].own_workers]
    pictures = {"latency.svg": svg("Requests while four reloads run: how long each took", "ms", "s", dots, y_log=True),
                "memory.svg": svg("Own memory over workers", "MB", "workers", memory, y_log=True)}
    for name, text in {"README.md": page, **pictures}.items():
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)
    print(page)

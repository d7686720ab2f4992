"""The page of a report: a Jinja template, to be rendered with autoescape, and its style. No script and no network."""

STYLE = """
:root { color-scheme: light; --ink: #222; --quiet: #6b6b6b; --line: #e2e2e2; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 40px 32px 80px; color: var(--ink); background: #fff;
  font: 15px/1.5 "Helvetica Neue", "Segoe UI", Roboto, Arial, "Noto Sans", sans-serif; }
h1 { font-size: 27px; font-weight: 600; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; font-weight: 600; margin: 52px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 14px; font-weight: 600; margin: 24px 0 6px; }
p { margin: 6px 0; max-width: 82ch; }
.quiet, figcaption, .note { color: var(--quiet); font-size: 13px; }
.state { border-left: 3px solid #d55e00; padding: 6px 12px; margin: 16px 0; background: #fdf4ee; }
code { font: 12.5px "SF Mono", Consolas, "Liberation Mono", monospace; }
nav { margin: 14px 0 0; font-size: 13px; }
nav a { color: var(--mark); text-decoration: none; margin-right: 14px; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 18px 0 0; font-size: 14px; }
dl.facts dt { color: var(--quiet); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; margin: 24px 0 6px; border: 1px solid var(--line); border-radius: 6px; }
.tile { flex: 1 1 0; padding: 12px 16px; border-left: 1px solid var(--line); }
.tile:first-child { border-left: 0; }
.tile span { display: block; color: var(--quiet); font-size: 12.5px; white-space: nowrap; }
.tile b { font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile b i { font-style: normal; font-weight: 400; color: var(--quiet); }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; margin: 8px 0; }
table.wide { width: 100%; }
table:not(.wide) :is(th, td) { padding-right: 14px; }
th { font-weight: 500; color: var(--quiet); text-align: right; padding: 3px 5px; vertical-align: bottom; }
td { text-align: right; padding: 4px 5px; border-top: 1px solid var(--line); white-space: nowrap; }
th.word, td.word { text-align: left; } td.word { white-space: normal; overflow-wrap: anywhere; }
th.group { text-align: center; color: var(--ink); } .first { padding-left: 14px; }
thead tr:last-child th { border-bottom: 1px solid #999; }
tbody tr:first-child td { border-top: 0; }
td.policy { white-space: nowrap; padding-right: 8px; } td.policy .quiet { font-size: 11.5px; }
tr.baseline td { color: var(--quiet); }
.badge { font-size: 11px; border: 1px solid var(--mark); color: var(--mark); border-radius: 8px; padding: 0 6px;
  margin-left: 4px; white-space: nowrap; }
.scroll { overflow-x: auto; }
figure { margin: 10px 0 4px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: "Helvetica Neue", "Segoe UI", Roboto, Arial, "Noto Sans", sans-serif !important; }
.samples td { vertical-align: top; text-align: left; white-space: normal; overflow-wrap: anywhere;
  padding: 7px 12px 7px 0; }
.samples th { text-align: left; padding-left: 0; }
.samples .history { color: var(--quiet); width: 52%; } .samples .title { width: 24%; }
.settings { columns: 3; column-gap: 36px; font-size: 12.5px; margin-top: 8px; }
.settings section { break-inside: avoid; margin-bottom: 16px; }
.settings h3 { margin-top: 0; }
.settings div { display: flex; justify-content: space-between; gap: 12px; padding: 1px 0;
  border-top: 1px solid var(--line); }
.settings div span:last-child { text-align: right; overflow-wrap: anywhere; min-width: 0; }
.settings div span:first-child { color: var(--quiet); }
@media screen and (max-width: 800px) { .settings { columns: 1; } body { padding: 20px 14px; } }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav { display: none; } .scroll { overflow: visible; }
  table { font-size: 8.5pt; } h2 { margin-top: 28px; }
  figure, tr, .tiles, .keep { break-inside: avoid; } h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

PAGE = """
{%- macro grid(table, kind="") -%}
<div class="scroll"><table class="{{ kind }}"><thead>
<tr>{% for name in table.head -%}
<th {% if loop.index <= table.words %}class="word"{% endif %}>{{ name }}</th>{% endfor %}</tr>
</thead><tbody>
{% for row in table.rows %}<tr>{% for cell in row -%}
<td {% if loop.index <= table.words %}class="word"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{%- endmacro -%}
{%- macro picture(svg, name) -%}
<figure role="img" aria-label="{{ name }}">{{ svg | safe }}<figcaption>{{ caller() }}</figcaption></figure>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ name }} · rayrec</title><style>{{ style | safe }}</style></head><body>
<header>
<h1><bdi>{{ name }}</bdi></h1>
<p class="quiet">{{ headline }}</p>
{% if unfinished %}<p class="state"><b>This run is not finished.</b> {{ unfinished }}</p>{% endif %}
{% if tiles %}<div class="tiles">{% for tile in tiles %}<div class="tile"><span>{{ tile.name }}</span>
<b>{% if tile.first %}<i>{{ tile.first }} →</i> {% endif %}{{ tile.last }}</b></div>{% endfor %}</div>
<p class="note">{{ tiles_note }}</p>{% endif %}
<dl class="facts">{% for fact in facts %}<dt>{{ fact[0] }}</dt><dd>{{ fact[1] }}</dd>{% endfor %}</dl>
<nav><a href="#results">Results</a>{% if genres %}<a href="#genres">Genres</a>{% endif
%}<a href="#training">Training</a><a href="#time">Time</a><a href="#negatives">Negatives</a
><a href="#samples">Samples</a><a href="#settings">Settings</a></nav>
</header>

<h2 id="results">Results</h2>
{% for group in results %}
<section class="keep"><h3>{{ group.title }}</h3>
<div class="scroll"><table class="wide"><thead>
<tr><th></th>{% for head in group.heads -%}
<th class="group" colspan="{{ group.cuts | length }}">{{ head }}</th>{% endfor %}</tr>
<tr><th class="word">policy</th>{% for head in group.heads %}{% for k in group.cuts -%}
<th {% if loop.first %}class="first"{% endif %}>@{{ k }}</th>{% endfor %}{% endfor %}</tr>
</thead><tbody>
{% for row in group.rows %}<tr class="{{ row.kind }}"><td class="word policy">{{ row.label }}
{%- if row.policy %} <span class="quiet">{{ row.policy }}</span>{% endif %}
{%- for badge in row.badges %} <span class="badge">{{ badge }}</span>{% endfor %}</td>
{%- for cell in row.cells -%}
<td {% if loop.index0 % (group.cuts | length) == 0 %}class="first"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="note">{{ group.note }}</p></section>
{% else %}<p class="quiet">No evaluation is finished yet.</p>{% endfor %}
{% for plot in curves %}
<h3>Over the iterations: {{ plot.title }}</h3>
{% call picture(plot.svg, "metrics over iterations, " ~ plot.title) %}Bars at HR: 95 % binomial intervals.
{% if plot.dotted %}Dotted: {{ plot.dotted }}, where inside the scale.{% endif %}{% endcall %}
{% endfor %}
{% if tradeoff %}
<h3>Accuracy against diversity: {{ tradeoff.title }}</h3>
{% call picture(tradeoff.svg, "accuracy against diversity") %}Up and to the right is better. Numbers are iterations, the
open mark is the first policy.{% endcall %}
{% endif %}

{% if genres %}
<h2 id="genres">Genres</h2>
<h3>{{ genres.title }}</h3>
{% call picture(genres.svg, "over- and under-recommendation of genres") %}Above 0 a genre has a larger share of the
recommendations than of the users' histories, below 0 a smaller one. Selected genres: {{ genres.selected }}.
{% endcall %}
{% endif %}

<h2 id="training">Training</h2>
{% if training %}{% call picture(training, "training curves") %}One line per phase, dark for the first and light for the
last.{% endcall %}{% else %}<p class="quiet">No training step was recorded.</p>{% endif %}

<h2 id="time">Time</h2>
{% if time %}
<p>{{ time.sentence }}</p>
{% call picture(time.svg, "lanes over time") %}An arrow leads from the phase that was waited for to the one that waited.
{% endcall %}
{{ grid(time.table) }}
{% else %}<p class="quiet">No phase was timed.</p>{% endif %}

<h2 id="negatives">Negatives</h2>
{% if negatives %}{{ grid(negatives) }}<p class="note">Per cent: shares of what was generated.
Others: counts.</p>{% else %}<p class="quiet">No negatives were made.</p>{% endif %}

<h2 id="samples">Samples</h2>
{% for group in samples %}
<h3>Iteration {{ group.iteration }}</h3>
<table class="wide samples"><thead><tr><th class="history">history, oldest first</th><th class="title">chosen</th>
<th class="title">rejected</th></tr></thead><tbody>
{% for row in group.rows %}<tr><td class="history">{% for title in row.history %}<bdi>{{ title }}</bdi>
{%- if not loop.last %} · {% endif %}{% endfor %}</td><td class="title"><bdi>{{ row.chosen }}</bdi></td>
<td class="title">{% for title in row.rejected %}<bdi>{{ title }}</bdi>{% if not loop.last %}<br>{% endif %}{% endfor %}
</td></tr>
{% endfor %}</tbody></table>
{% else %}<p class="quiet">No sample was kept.</p>{% endfor %}
{% for line in unread %}<p class="note">{{ line }}</p>{% endfor %}

<h2 id="settings">Settings and counts</h2>
{% if counted %}<h3>What the evaluations counted</h3>{{ grid(counted) }}{% endif %}
<div class="settings">{% for group in settings %}<section><h3>{{ group[0] }}</h3>
{% for pair in group[1] %}<div><span>{{ pair[0] }}</span><span>{{ pair[1] }}</span></div>{% endfor %}</section>
{% endfor %}</div>
</body></html>
"""

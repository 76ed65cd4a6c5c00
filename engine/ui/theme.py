"""The page's looks: a Gradio theme, and CSS for the parts that are ours.

Fonts are the system's own, so nothing is fetched. Colours are variables with a value for light and
one for dark; green-blue is up and good, rust is down and bad, in both.
"""

from __future__ import annotations

import gradio as gr

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Apple SD Gothic Neo", "Malgun Gothic")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas")


def _fonts(names: tuple[str, ...], last: str) -> list[gr.themes.Font]:
    return [gr.themes.Font(name) for name in (*names, last)]


THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    secondary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.stone,
    radius_size=gr.themes.sizes.radius_md,
    spacing_size=gr.themes.sizes.spacing_md,
    font=_fonts((*_SANS, "Noto Sans KR"), "sans-serif"),
    font_mono=_fonts(_MONO, "monospace"),
).set(
    body_background_fill="#f7f5f1",
    body_background_fill_dark="#171614",
    body_text_color="#26231f",
    body_text_color_dark="#ebe7e0",
    body_text_color_subdued="#6b655c",
    body_text_color_subdued_dark="#a8a196",
    background_fill_primary="#ffffff",
    background_fill_primary_dark="#201e1b",
    background_fill_secondary="#f1eee8",
    background_fill_secondary_dark="#282521",
    border_color_primary="#e2ddd3",
    border_color_primary_dark="#3a362f",
    block_background_fill="#ffffff",
    block_background_fill_dark="#201e1b",
    block_border_color="#e2ddd3",
    block_border_color_dark="#3a362f",
    block_label_background_fill="transparent",
    block_label_background_fill_dark="transparent",
    block_label_border_width="0",
    block_label_text_color="#6b655c",
    block_label_text_color_dark="#a8a196",
    block_title_text_color="#4a453d",
    block_title_text_color_dark="#cfc8bc",
    block_title_text_weight="600",
    block_info_text_color="#6b655c",
    block_info_text_color_dark="#a8a196",
    block_radius="12px",
    container_radius="12px",
    block_shadow="none",
    block_shadow_dark="none",
    input_background_fill="#fbfaf7",
    input_background_fill_dark="#191715",
    input_border_color="#d9d3c7",
    input_border_color_dark="#454038",
    input_placeholder_color="#8b8478",
    input_placeholder_color_dark="#8f887c",
    button_primary_background_fill="#0f6b64",
    button_primary_background_fill_hover="#0c5751",
    button_primary_background_fill_dark="#1c857c",
    button_primary_background_fill_hover_dark="#23988e",
    button_primary_text_color="#ffffff",
    button_primary_text_color_dark="#ffffff",
    slider_color="#0f6b64",
    slider_color_dark="#3db3a7",
    loader_color="#0f6b64",
    loader_color_dark="#3db3a7",
    link_text_color="#0c5751",
    link_text_color_dark="#5cc7bc",
)

# Esc stops, Ctrl+Enter retries; a held modifier must not send what stands in the box.
HEAD = """<meta name="color-scheme" content="light dark">
<script>
document.addEventListener("keydown", (event) => {
  const pressed = event.key === "Escape" ? "#pc-stop"
    : event.key === "Enter" && (event.ctrlKey || event.metaKey) ? "#pc-retry" : null;
  const button = pressed && document.querySelector(pressed);
  if (!button || button.disabled || button.offsetParent === null) return;
  event.preventDefault();
  event.stopPropagation();
  button.click();
}, true);
</script>"""

_COLOURS = """
:root { --pc-up:#0f6b64; --pc-up-soft:#d5ebe7; --pc-down:#a8431b; --pc-down-soft:#f6dfd3;
  --pc-track:#e9e4da; --pc-base:#c3bbad; --pc-ink:#26231f; --pc-dim:#6b655c; --pc-line:#e2ddd3;
  --pc-serif:"Iowan Old Style","Palatino Linotype",Palatino,Georgia,"Noto Serif KR",serif; }
.dark { --pc-up:#4cc2b5; --pc-up-soft:#173c38; --pc-down:#ee8a5d; --pc-down-soft:#48261a;
  --pc-track:#37332d; --pc-base:#6d665b; --pc-ink:#ebe7e0; --pc-dim:#a8a196; --pc-line:#3a362f; }
"""

_LAYOUT = """
.gradio-container { padding:0 !important; }
.gradio-container .main.fillable, .gradio-container > main { max-width:1560px !important;
  margin:0 auto !important; padding:14px 20px 24px !important; }
#pc-top { align-items:flex-end; gap:6px 20px; }
#pc-top > * { flex:1 1 auto; min-width:min(100%,320px) !important; width:auto; }
#pc-top .pc-status { justify-content:flex-end; }
@media (max-width:767px) { #pc-top .pc-status { justify-content:flex-start; padding-left:0; } }
#pc-top .html-container, #pc-grid .html-container, #pc-api .html-container { padding:0 !important; }
.tab-container button.selected { color:var(--pc-up) !important; }
.tab-container button.selected::after { background:var(--pc-up) !important; }
#pc-grid { display:grid !important; gap:16px; align-items:start;
  grid-template-columns:minmax(0,1fr);
  grid-template-areas:"who" "chat" "turn" "scene" "session"; }
#pc-grid .column { min-width:0 !important; width:100%; }
#pc-left, #pc-middle { display:contents; }
#pc-who { grid-area:who; gap:10px; } #pc-chat { grid-area:chat; gap:10px; }
#pc-turn { grid-area:turn; } #pc-scene { grid-area:scene; } #pc-session { grid-area:session; }
@media (min-width:768px) { #pc-grid { grid-template-columns:minmax(0,1fr) minmax(0,1fr);
  grid-template-areas:"who session" "chat chat" "turn scene"; } }
@media (min-width:1160px) { #pc-grid {
  grid-template-columns:minmax(270px,310px) minmax(0,1fr) minmax(340px,400px);
  grid-template-areas:"left middle turn"; }
  #pc-left { display:flex; grid-area:left; } #pc-middle { display:flex; grid-area:middle; } }
#pc-npc input { padding-right:26px; }
.pc-pair { gap:10px; } .pc-pair > * { min-width:min(100%,170px) !important; }
.gradio-container input[role=listbox], .gradio-container input { text-overflow:ellipsis; }
.pc-hint, .pc-hint p { color:var(--pc-dim); font-size:.86rem; }
#pc-input { flex-wrap:nowrap !important; gap:8px; align-items:stretch; }
#pc-input > * { min-width:0; } #pc-send, #pc-stop { width:92px; flex:0 0 92px !important; }
#pc-say textarea { font-size:1rem; line-height:1.45; padding:11px 14px; }
#pc-tools { gap:8px; align-items:flex-start; min-height:40px; flex-wrap:nowrap !important; }
#pc-tools button { flex:0 0 auto; min-width:88px; } #pc-note { flex:1 1 auto; min-width:0 !important; }
#pc-game-state-error:not(:has(.pc-note)) { display:none; }
#pc-scene .form { border:0; border-radius:0; background:none; gap:12px; }
#pc-scene .form > .block { padding:0;
  border:0; border-radius:0; background:none; overflow:visible !important; }
#pc-scene > .block { padding:14px; }
/* The file stays in sight while a long form is filled in; on a phone it stands below. What is hidden,
   other than what is clipped, would hold it back. */
.gradio-container { overflow:clip !important; }
@media (max-width:900px) { #pc-ed-sides { flex-direction:column; } }
@media (min-width:901px) { #pc-ed-sides > :last-child { position:sticky; top:58px; } }
#pc-ed-told { position:sticky; top:0; z-index:4; }
#pc-knowledge, #pc-model { max-width:1100px; margin:0 auto; }
.pc-wide { overflow-x:auto; margin:6px 0 14px; }
.pc-table { width:100%; border-collapse:collapse; font-size:.88rem; color:var(--pc-ink); }
.pc-table caption { text-align:left; font-weight:600; padding:8px 0; }
.pc-table th, .pc-table td { text-align:left; vertical-align:top; padding:7px 12px 7px 0;
  border:0; border-top:1px solid var(--pc-line); font-weight:400; overflow-wrap:anywhere; }
.pc-table thead th { color:var(--pc-dim); border-top:0; }
.pc-table th, .pc-table td:not(:last-child) { overflow-wrap:normal; }
.pc-table td:last-child { min-width:200px; }
.pc-table, .pc-table thead, .pc-table tbody, .pc-table tr { border:0 !important; }
#pc-knowledge .html-container, #pc-model .html-container { padding:0 !important; }
#pc-api { max-width:980px; margin:0 auto; overflow-x:auto; }
@media (max-width:767px) { .gradio-container .main.fillable, .gradio-container > main {
  padding:10px 12px 20px !important; } #pc-talk { height:min(56vh,460px) !important; }
  .pc-card .pc-traits { display:none; } .pc-card .pc-story { display:-webkit-box;
  -webkit-line-clamp:2; -webkit-box-orient:vertical; overflow:hidden; } }
"""

_PARTS = """
.pc-header { display:flex; align-items:baseline; gap:12px; flex-wrap:wrap; }
.pc-raw { white-space:pre-wrap; overflow-wrap:anywhere; max-height:420px;
  overflow-y:auto; font-size:.78rem; color:var(--pc-ink); background:var(--pc-track);
  border-radius:8px; padding:10px; margin:0; }
.pc-charts { display:flex; flex-wrap:wrap; gap:12px; }
.pc-chart { flex:1 1 300px; max-width:460px; margin:0; color:var(--pc-dim); font-size:.86rem; }
.pc-chart svg { width:100%; height:auto; display:block; }
.pc-chart polyline { fill:none; stroke-width:2; } .pc-chart .pc-grid { stroke:var(--pc-line); }
.pc-chart .pc-tick { fill:var(--pc-dim); font-size:10px; } .pc-chart .pc-mark { stroke:var(--pc-ink);
  stroke-dasharray:4 3; }
.pc-chart .pc-line0 { stroke:var(--pc-base); stroke-dasharray:4 4; }
.pc-chart .pc-line1 { stroke:var(--pc-up); } .pc-chart .pc-line2 { stroke:var(--pc-down); }
.pc-legend { margin-left:8px; white-space:nowrap; } .pc-legend i { display:inline-block; width:14px;
  height:3px; margin-right:4px; vertical-align:middle; background:var(--pc-base); }
.pc-legend i.pc-line1 { background:var(--pc-up); } .pc-legend i.pc-line2 { background:var(--pc-down); }
.pc-header h1 { font-family:var(--pc-serif); font-size:1.5rem; font-weight:600; margin:0;
  letter-spacing:-.01em; color:var(--pc-ink); }
.pc-header p { margin:0; color:var(--pc-dim); font-size:.95rem; }
.pc-status { position:relative; display:flex; gap:8px; align-items:center; font-size:.86rem;
  color:var(--pc-dim); padding:5px 12px; border-radius:8px; overflow:hidden; min-height:34px; }
.pc-status strong { color:var(--pc-ink); } .pc-status span { overflow-wrap:anywhere; }
.pc-status::before { content:""; width:8px; height:8px; border-radius:50%; flex:none;
  background:var(--pc-base); }
.pc-status.pc-good { padding-left:0; } .pc-good.pc-status::before { background:var(--pc-up); }
.pc-bad.pc-status::before { background:var(--pc-down); }
.pc-status.pc-bad, .pc-status.pc-wait { background:var(--background-fill-primary);
  border:1px solid var(--pc-line); }
.pc-bar { position:absolute; inset:auto 0 0 0; height:3px; background:var(--pc-track); }
.pc-bar i { display:block; height:100%; background:var(--pc-up); transition:width .6s; }
.pc-note { padding:8px 12px; border-radius:8px; font-size:.9rem; overflow-wrap:anywhere;
  margin:2px 0; }
.pc-note.pc-bad { background:var(--pc-down-soft); color:var(--pc-ink);
  border-left:3px solid var(--pc-down); }
.pc-note.pc-good { background:var(--pc-up-soft); color:var(--pc-ink);
  border-left:3px solid var(--pc-up); }
.pc-card, .pc-turn { background:var(--background-fill-primary); border:1px solid var(--pc-line);
  border-radius:12px; padding:16px; color:var(--pc-ink); overflow-wrap:anywhere; }
.pc-card h2 { font-family:var(--pc-serif); font-size:1.3rem; margin:0; font-weight:600; }
.pc-role { margin:2px 0 10px; color:var(--pc-dim); font-size:.92rem; }
.pc-story { font-family:var(--pc-serif); font-size:.95rem; line-height:1.55; margin:10px 0 0; }
.pc-traits { list-style:none; display:flex; flex-wrap:wrap; gap:5px; padding:0; margin:10px 0 0; }
.pc-traits li { font-size:.78rem; padding:2px 9px; border:1px solid var(--pc-line);
  border-radius:99px; color:var(--pc-dim); margin:0; }
.pc-facts { display:grid; grid-template-columns:auto minmax(0,1fr); gap:3px 12px; margin:0;
  font-size:.87rem; }
.pc-facts div { display:contents; } .pc-facts dt { color:var(--pc-dim); margin:0; }
.pc-facts dd { margin:0; } .pc-small { font-size:.8rem; margin-top:12px; padding-top:10px;
  border-top:1px solid var(--pc-line); }
"""

_TURN = """
.pc-turn h3 { display:flex; align-items:center; flex-wrap:wrap; gap:8px; font-size:1rem;
  font-weight:650; margin:0 0 10px; min-height:24px; }
.pc-turn h4 { font-size:.8rem; font-weight:600; color:var(--pc-dim); margin:14px 0 6px; }
.pc-stage { margin-left:auto; font-weight:400; font-size:.82rem; color:var(--pc-dim); }
.pc-stage b { color:var(--pc-up); } .pc-why { margin:0 0 10px; font-size:.86rem; }
.pc-chip { font-size:.74rem; font-weight:600; padding:2px 9px; border-radius:99px;
  background:var(--pc-track); color:var(--pc-ink); }
.pc-chip.pc-main { background:var(--pc-up-soft); color:var(--pc-up); }
.pc-chip.pc-forbidden, .pc-chip.pc-invalid, .pc-chip.pc-degraded {
  background:var(--pc-down-soft); color:var(--pc-down); }
.pc-writing { font-size:.8rem; font-weight:400; font-style:italic; color:var(--pc-dim); }
.pc-gauge { margin:0 0 12px; } .pc-figures { display:flex; align-items:baseline; gap:8px; }
.pc-figures > * { white-space:nowrap; overflow-wrap:normal; }
.pc-figures .pc-name { font-size:.86rem; color:var(--pc-dim); margin-right:auto; }
.pc-figures b { font-size:1.35rem; font-weight:600; font-variant-numeric:tabular-nums; }
.pc-from { color:var(--pc-dim); font-size:.9rem; font-variant-numeric:tabular-nums; }
.pc-delta { font-size:.86rem; font-weight:650; font-variant-numeric:tabular-nums;
  min-width:66px; text-align:right; }
.pc-delta.pc-up { color:var(--pc-up); } .pc-delta.pc-down { color:var(--pc-down); }
.pc-delta.pc-same { color:var(--pc-dim); }
.pc-scale { position:relative; height:8px; border-radius:99px; background:var(--pc-track);
  margin-top:5px; }
.pc-scale i { position:absolute; top:0; height:100%; display:block; }
.pc-base { background:var(--pc-base); } .pc-move.pc-up { background:var(--pc-up); }
.pc-move.pc-down { background:var(--pc-down); }
.pc-scale .pc-zero { left:50%; width:1px; top:-3px; height:14px; background:var(--pc-dim);
  opacity:.6; }
.pc-scale .pc-knob { width:4px; height:14px; top:-3px; margin-left:-2px; border-radius:2px;
  background:var(--pc-ink); }
.pc-effects { list-style:none; padding:0; margin:0; display:grid; gap:8px; }
.pc-effects li { display:flex; flex-wrap:wrap; gap:3px 6px; font-size:.88rem; margin:0;
  padding-left:10px; border-left:2px solid var(--pc-line); }
.pc-effects span { flex-basis:100%; } .pc-effects small { flex-basis:100%; color:var(--pc-dim); }
.pc-turn code, .pc-calls code, .pc-will code { font-size:.8rem; background:var(--pc-track);
  color:var(--pc-ink); border:0; border-radius:4px; padding:1px 5px; white-space:normal; }
.pc-flags { width:100%; border-collapse:collapse; margin:14px 0 0; font-size:.85rem; }
.pc-flags caption { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%); }
.pc-flags th, .pc-flags td { text-align:left; padding:6px 8px 6px 0; vertical-align:top;
  border:0; border-top:1px solid var(--pc-line); font-weight:400; background:none; }
.pc-flags thead th { border-top:0; color:var(--pc-dim); font-size:.76rem; padding-top:0; }
.pc-flags th small { display:block; color:var(--pc-dim); font-size:.76rem; line-height:1.35;
  margin-top:2px; }
.pc-flags td:nth-child(2) { width:104px; } .pc-flags td:last-child { width:62px; padding-right:0;
  text-align:right; white-space:nowrap; }
.pc-flags thead th:last-child { text-align:right; padding-right:0; }
.pc-flags code { background:none; padding:0; } .pc-barred code { color:var(--pc-dim); }
.pc-fired { background:var(--pc-up-soft); box-shadow:-8px 0 0 var(--pc-up-soft),
  8px 0 0 var(--pc-up-soft); } .pc-fired code { font-weight:700; }
.pc-yes { color:var(--pc-up); font-weight:650; } .pc-no, .pc-none { color:var(--pc-dim); }
.pc-meter { position:relative; display:block; height:6px; border-radius:99px; margin:6px 0 3px;
  background:var(--pc-track); }
.pc-fill { position:absolute; inset:0 auto 0 0; border-radius:99px; background:var(--pc-base); }
.pc-fired .pc-fill { background:var(--pc-up); }
.pc-fired .pc-meter { background:var(--background-fill-primary); }
.pc-tick { position:absolute; top:-3px; width:2px; height:12px; margin-left:-1px;
  background:var(--pc-ink); }
.pc-number { font-size:.76rem; color:var(--pc-dim); font-variant-numeric:tabular-nums; }
.pc-flags, .pc-flags thead, .pc-flags tbody, .pc-flags tr, .pc-calls, .pc-calls thead,
.pc-calls tbody, .pc-calls tr { border:0 !important; }
.pc-rest { margin-top:8px; font-size:.82rem; } .pc-rest summary { color:var(--pc-dim);
  cursor:pointer; padding:4px 0; } .pc-rest .pc-flags { margin-top:4px; }
.pc-acts-title { font-size:.8rem; color:var(--pc-dim); margin:0 0 4px; }
.pc-acts { list-style:none; display:flex; flex-wrap:wrap; gap:5px; padding:0; margin:0 0 12px; }
.pc-acts li { font-size:.78rem; padding:2px 9px; border:1px solid var(--pc-line);
  border-radius:99px; margin:0; } .pc-acts b { font-variant-numeric:tabular-nums; }
.pc-plot { margin:0 0 12px; } .pc-plot svg { width:100%; height:84px; display:block;
  background:var(--pc-track); border-radius:8px; }
.pc-plot figcaption { display:flex; align-items:baseline; gap:10px; font-size:.8rem;
  color:var(--pc-dim); margin-bottom:4px; } .pc-plot ul { list-style:none; display:flex; gap:10px;
  padding:0; margin:0 0 0 auto; } .pc-key { margin:0; }
.pc-key::before { content:""; display:inline-block; width:12px; height:2px; margin-right:5px;
  vertical-align:middle; background:currentColor; } .pc-key.pc-trust { color:var(--pc-up); }
.pc-key.pc-relationship { color:var(--pc-down); }
.pc-line { fill:none; stroke-width:2; vector-effect:non-scaling-stroke; stroke-linejoin:round; }
.pc-line.pc-trust { stroke:var(--pc-up); } .pc-line.pc-relationship { stroke:var(--pc-down); }
.pc-axis { stroke:var(--pc-dim); stroke-width:1; opacity:.4; vector-effect:non-scaling-stroke; }
.pc-keys p { font-size:.78rem; margin:0; } #pc-files button { width:100%; }
.pc-sr { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%); }
.pc-will { font-size:.82rem; color:var(--pc-dim); margin:4px 0 0; }
.pc-will ul { list-style:none; display:grid; gap:3px; padding:0; margin:4px 0 0; }
.pc-will li { overflow-wrap:anywhere; margin:0; } .pc-will b { color:var(--pc-up); }
.pc-calls { width:100%; border-collapse:collapse; font-size:.88rem; color:var(--pc-ink); }
.pc-calls caption { text-align:left; font-weight:600; padding:8px 0; }
.pc-calls th { width:42%; overflow-wrap:anywhere; } .pc-calls th code { line-height:1.7; }
.pc-calls th, .pc-calls td { text-align:left; vertical-align:top; padding:7px 12px 7px 0;
  border:0; border-top:1px solid var(--pc-line); font-weight:400; }
.pc-calls thead th { color:var(--pc-dim); border-top:0; }
"""

_CHAT = """
#pc-talk { border-radius:12px; } #pc-talk .icon-button-wrapper { display:none; }
#pc-talk .user.message { background:var(--pc-up-soft); border-color:transparent; }
#pc-talk .message { font-size:1rem; line-height:1.55; }
#pc-talk .bot.message, #pc-talk .bot .message { font-family:var(--pc-serif); font-size:1.06rem; }
@media (max-width:767px) { .pc-figures { gap:6px; } .pc-figures b { font-size:1.15rem; } }
@media (prefers-reduced-motion:reduce) { *, *::before { animation:none !important;
  transition:none !important; } }
"""

CSS = _COLOURS + _LAYOUT + _PARTS + _TURN + _CHAT

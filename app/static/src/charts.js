// Charts over time, drawn by uPlot, which is loaded only on a page that has a chart. Until it is
// there, and for ever if it never comes, the table with the same values is shown. See the
// macro `chart` in macros/ui.html for the markup.

const LOAD_SECONDS = 5;
const AXIS_FONT = '11px Inter, system-ui, sans-serif';

const drawn = new Map();

export async function startCharts() {
  const elements = document.querySelectorAll('[data-chart]');
  document.addEventListener('live:updated', (event) => update(event.target));
  document.addEventListener('theme:changed', () => redrawAll());
  if (elements.length > 0) await update(document);
}

async function update(root) {
  const elements = [...root.querySelectorAll('[data-chart]')];
  if (elements.length === 0) return;
  const library = await load();
  for (const element of elements) {
    if (library) draw(library, element);
    else element.dataset.state = 'table';
  }
}

let loading;

function load() {
  loading ??= new Promise((resolve) => {
    const script = document.createElement('script');
    script.src = document.querySelector('[data-chart]').dataset.chart;
    script.addEventListener('load', () => resolve(window.uPlot));
    script.addEventListener('error', () => resolve(null));
    setTimeout(() => resolve(null), LOAD_SECONDS * 1000);
    document.head.append(script);
  });
  return loading;
}

function draw(UPlot, element, { anew = false } = {}) {
  const { times, series, unit, axis } = JSON.parse(element.dataset.chartValues);
  const data = [times, ...series.map((line) => line.values)];
  const known = drawn.get(element);
  if (known && !anew && known.labels === labelsOf(series)) {
    known.chart.setData(data);
    return;
  }
  known?.destroy();
  const plot = element.querySelector('.chart-plot');
  element.dataset.state = 'drawn';
  const chart = new UPlot(options(plot, element, { series, unit, timeText: TIME_TEXTS[axis] }), data, plot);
  const observer = new ResizeObserver(() => chart.setSize(sizeOf(plot)));
  observer.observe(plot);
  drawn.set(element, {
    chart,
    labels: labelsOf(series),
    destroy: () => {
      observer.disconnect();
      chart.destroy();
    },
  });
}

function redrawAll() {
  for (const [element, known] of drawn) {
    if (element.isConnected) draw(window.uPlot, element, { anew: true });
    else {
      known.destroy();
      drawn.delete(element);
    }
  }
}

function options(plot, element, { series, unit, timeText }) {
  const muted = colorOf('var(--ink-muted)', element);
  const grid = { stroke: colorOf('var(--line)', element), width: 1 };
  const axis = { stroke: muted, font: AXIS_FONT, ticks: { show: false } };
  return {
    ...sizeOf(plot),
    padding: [8, 28, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: { x: { range: xRange }, y: { range: (_chart, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, grid: { show: false }, size: 28, space: 70, values: (_chart, ticks, _axis, _space, step) => ticks.map((tick) => timeText(tick, step)) },
      { ...axis, grid, size: 52, space: 40, values: (_chart, ticks) => ticks.map((tick) => tickText(tick, unit)) },
    ],
    series: [{}, ...series.map((line) => lineOptions(line, element))],
    plugins: [tooltip(series, unit, timeText)],
  };
}

function lineOptions(line, element) {
  const stroke = colorOf(`var(--${line.tone})`, element);
  return { label: line.label, stroke, width: 2, points: { show: () => false, filter: alone, size: 7, fill: stroke }, fill: line.fill ? colorOf(`color-mix(in srgb, var(--${line.tone}) 12%, transparent)`, element) : undefined };
}

// uPlot gives a lone moment a whole day.
function xRange(chart, low, high) {
  return chart.data[0].length === 1 ? [low - 5, low + 5] : [low, high];
}

// A value without a neighbour has no line that would show it, so these get a point.
function alone(chart, index) {
  const values = chart.data[index];
  return [...values.keys()].filter((i) => isKnown(values[i]) && !isKnown(values[i - 1]) && !isKnown(values[i + 1]));
}

function isKnown(value) {
  return value !== null && value !== undefined;
}

function tooltip(series, unit, timeText) {
  let tip;
  return {
    hooks: {
      init: (chart) => {
        tip = document.createElement('div');
        tip.className = 'chart-tip';
        tip.hidden = true;
        chart.over.append(tip);
      },
      setCursor: (chart) => {
        const { idx, left } = chart.cursor;
        tip.hidden = idx === null || idx === undefined || left < 0;
        if (tip.hidden) return;
        const lines = series.map((line, i) => `${line.label}: ${valueText(chart.data[i + 1][idx], unit)}`);
        tip.replaceChildren(...[timeText(chart.data[0][idx]), ...lines].map(textLine));
        const flip = left > chart.over.clientWidth / 2;
        tip.style.transform = `translateX(${flip ? left - tip.offsetWidth - 12 : left + 12}px)`;
      },
    },
  };
}

function textLine(text) {
  const line = document.createElement('div');
  line.textContent = text;
  return line;
}

function sizeOf(plot) {
  return { width: plot.clientWidth, height: plot.clientHeight };
}

function labelsOf(series) {
  return series.map((line) => `${line.label}:${line.tone}`).join('|');
}

// The canvas knows no custom properties, so the browser resolves them on a real element.
function colorOf(value, element) {
  const probe = document.createElement('span');
  probe.style.color = value;
  element.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

const clockFormat = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const numberFormat = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 2 });

function clockText(seconds, step = 1) {
  const text = clockFormat.format(new Date(seconds * 1000));
  return step % 60 === 0 ? text.slice(0, 5) : text;
}

// Seconds since a start, as 1:05 or 1:02:05.
function elapsedText(seconds) {
  if (seconds < 0) return '';
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  const shown = parts[0] > 0 ? parts : parts.slice(1);
  return shown.map((part, i) => (i === 0 ? String(part) : String(part).padStart(2, '0'))).join(':');
}

const TIME_TEXTS = { clock: clockText, elapsed: elapsedText };

// Milliseconds are read as seconds where there are many.
function valueText(value, unit) {
  if (unit === 'ms' && value >= 1000) return `${compact(value / 1000)} s`;
  return `${compact(value)}${unit ? ` ${unit}` : ''}`;
}

function tickText(value, unit) {
  return unit === 'ms' && value > 0 ? valueText(value, unit) : compact(value);
}

function compact(value) {
  return isKnown(value) ? numberFormat.format(value) : '–';
}

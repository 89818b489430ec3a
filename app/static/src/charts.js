// Charts over time, drawn by uPlot, which is loaded only on a page that has a chart. Until it is
// there, and for ever if it never comes, the table with the same values is shown. See the
// macro `chart` in macros/ui.html for the markup.

const LOAD_SECONDS = 5;
const AXIS_FONT = '11px Inter, system-ui, sans-serif';

// Nothing is recorded by less than a second.
const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
const SHORT_SECONDS = 400;
// In milliseconds: what people say, from 0.1 ms to days.
const DURATIONS = [0.1, 1, 10, 100, 1000, 10_000, 60_000, 600_000, 3_600_000, 36_000_000, 86_400_000, 864_000_000];
const DURATION_STEPS = [
  0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000,
  600_000, 1_800_000, 3_600_000, 7_200_000, 21_600_000, 43_200_000, 86_400_000,
];
const LARGEST_RATIO = 60;

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
  const isLog = unit === 'ms' && spreads(series);
  const data = [times, ...series.map((line) => (isLog ? line.values.map(aboveZero) : line.values))];
  const known = drawn.get(element);
  const labels = `${labelsOf(series)}|${isLog}`;
  if (known && !anew && known.labels === labels) {
    known.chart.setData(data);
    return;
  }
  known?.destroy();
  const plot = element.querySelector('.chart-plot');
  element.dataset.state = 'drawn';
  const chart = new UPlot(options(plot, element, { series, unit, isLog, timeText: TIME_TEXTS[axis] }), data, plot);
  const observer = new ResizeObserver(() => chart.setSize(sizeOf(plot)));
  observer.observe(plot);
  drawn.set(element, {
    chart,
    labels,
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

function options(plot, element, { series, unit, isLog, timeText }) {
  const muted = colorOf('var(--ink-muted)', element);
  const grid = { stroke: colorOf('var(--line)', element), width: 1 };
  const axis = { stroke: muted, font: AXIS_FONT, ticks: { show: false } };
  const values = { ...axis, grid, gap: 8, size: widthOfTicks, space: 40, values: (_chart, ticks) => ticks.map((tick) => tickText(tick, unit)) };
  if (isLog) {
    values.splits = (_chart, _index, low, high) => DURATIONS.filter((tick) => tick >= low && tick <= high);
    values.filter = (_chart, ticks) => ticks; // otherwise only powers of ten get a label
  }
  if (unit === 'ms' && !isLog) values.incrs = DURATION_STEPS;
  return {
    ...sizeOf(plot),
    // The last label of the time axis may stand half outside.
    padding: [8, (chart) => (chart.scales.x.max - chart.scales.x.min < SHORT_SECONDS ? 26 : 17), 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: { x: { range: xRange }, y: isLog ? { distr: 3, range: logRange } : { range: (_chart, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, grid: { show: false }, size: 28, space: 70, incrs: TIME_STEPS, values: (_chart, ticks, _axis, _space, step) => ticks.map((tick) => timeText(tick, step)) },
      values,
    ],
    series: [{}, ...series.map((line) => lineOptions(line, element))],
    plugins: [tooltip(series, unit, timeText)],
  };
}

// Latencies of milliseconds and of minutes in one chart: the small ones are seen, too.
function spreads(series) {
  const known = series.flatMap((line) => line.values).filter((value) => isKnown(value) && value > 0);
  return known.length > 0 && Math.max(...known) / Math.min(...known) > LARGEST_RATIO;
}

function aboveZero(value) {
  return value > 0 ? value : null;
}

function logRange(_chart, low, high) {
  return [DURATIONS.findLast((tick) => tick <= low) ?? low, DURATIONS.find((tick) => tick >= high) ?? high];
}

// As wide as its longest label, so that the drawing begins where the text of the card does.
function widthOfTicks(chart, texts) {
  if (!texts) return 40;
  chart.ctx.font = `${11 * devicePixelRatio}px Inter, system-ui, sans-serif`;
  return Math.ceil(Math.max(...texts.map((text) => chart.ctx.measureText(text).width)) / devicePixelRatio) + 9;
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
const numberFormat = new Intl.NumberFormat('en', { maximumSignificantDigits: 4, maximumFractionDigits: 2, roundingPriority: 'lessPrecision' });
const compactFormat = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 2 });

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

function valueText(value, unit) {
  if (unit === 'ms' && isKnown(value)) return durationText(value);
  return `${compact(value)}${unit && isKnown(value) ? ` ${unit}` : ''}`;
}

function tickText(value, unit) {
  return unit === 'ms' && value > 0 ? durationText(value) : compact(value);
}

// 45 ms, 1.5 s, 1 min 30 s, 2 h: as the pages write durations.
function durationText(milliseconds) {
  if (milliseconds < 1000) return `${compact(milliseconds)} ms`;
  if (milliseconds < 60_000) return `${compact(milliseconds / 1000)} s`;
  for (const [size, unit, smaller, smallerUnit] of [[86_400_000, 'd', 3_600_000, 'h'], [3_600_000, 'h', 60_000, 'min'], [60_000, 'min', 1000, 's']]) {
    if (milliseconds < size) continue;
    const rest = Math.floor((milliseconds % size) / smaller);
    return `${Math.floor(milliseconds / size)} ${unit}${rest ? ` ${rest} ${smallerUnit}` : ''}`;
  }
  return '';
}

function compact(value) {
  if (!isKnown(value)) return '–';
  return (Math.abs(value) < 10_000 ? numberFormat : compactFormat).format(value);
}

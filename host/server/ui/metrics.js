// Reads the text of /metrics and derives what the live view shows: rates of counters and quantiles of histograms
// between two readings.

/** All series of a metrics text: a list per name of `{ labels, value }`. */
export function parse(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const [, name, labels, value] = match;
    if (!series.has(name)) series.set(name, []);
    series.get(name).push({ labels: parseLabels(labels ?? ""), value: Number(value) });
  }
  return series;
}

function parseLabels(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
    labels[name] = value.replace(/\\(.)/g, (_, escaped) => (escaped === "n" ? "\n" : escaped));
  }
  return labels;
}

/** The sum over all series of a name; null where there is none. */
export function total(series, name) {
  const found = series.get(name);
  return found ? found.reduce((sum, one) => sum + one.value, 0) : null;
}

/** A histogram as `[upper bound, cumulative count]`, by bound. */
function buckets(series, name) {
  const counts = new Map();
  for (const { labels, value } of series.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort((one, other) => one[0] - other[0]);
}

/** A quantile of what a histogram took in between two readings, within a bucket by a straight line; null if nothing. */
export function quantile(before, now, name, share) {
  const earlier = new Map(buckets(before, name));
  const counts = buckets(now, name).map(([bound, value]) => [bound, value - (earlier.get(bound) ?? 0)]);
  const all = counts.at(-1)?.[1] ?? 0;
  if (!(all > 0)) return null;
  const wanted = share * all;
  let low = 0;
  let below = 0;
  for (const [bound, value] of counts) {
    if (value >= wanted) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (wanted - below)) / Math.max(value - below, 1e-9);
    }
    [low, below] = [bound, value];
  }
  return low;
}

/** How fast a counter grew, per second; null where it is missing or was set back by a restart. */
export function rate(before, now, name, seconds) {
  const [from, to] = [total(before, name), total(now, name)];
  if (from === null || to === null || to < from || seconds <= 0) return null;
  return (to - from) / seconds;
}

/** How much a value grew between two readings. */
export function growth(before, now, name) {
  const [from, to] = [total(before, name), total(now, name)];
  return from === null || to === null || to < from ? null : to - from;
}

// Axes: round ticks over a range.

/** Ticks at 1, 2 or 5 times a power of ten, about `wanted` of them, within the range. */
export function ticks(low, high, wanted = 4) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const raw = span / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step)
    found.push(Math.abs(at) < step * 1e-6 ? 0 : Number(at.toPrecision(12)));
  return found;
}

/** A straight map from a range of values to a range of pixels. */
export function linear([low, high], [from, to]) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** The least round upper end of an axis from 0 that holds a value. */
export function top(value) {
  if (!(value > 0)) return 1;
  const marks = ticks(0, value, 4);
  const step = marks.length > 1 ? marks[1] - marks[0] : value;
  return Math.ceil(value / step - 1e-9) * step;
}

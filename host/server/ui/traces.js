// What a reply's `polyskill` object says of the routing, kept in typed arrays, and what follows from it: shares per
// token, cells of the heat map, agreement of two replies.

/** The groups of sites that read the same input. */
export const GROUPS = [
  { id: "all", label: "All sites", sites: null },
  { id: "attention-input", label: "Attention input (q, k, v)", sites: ["q_proj", "k_proj", "v_proj"] },
  { id: "attention-output", label: "Attention output (o)", sites: ["o_proj"] },
  { id: "feed-forward-input", label: "Feed-forward input (gate, up)", sites: ["gate_proj", "up_proj"] },
  { id: "feed-forward-inner", label: "Feed-forward inner (down)", sites: ["down_proj"] },
  { id: "experts", label: "Experts of the base", sites: ["moe"] },
];
/** Where the base's own experts are picked; these are no modules, so shares leave them out. */
const EXPERTS = "moe";

/** A full trace, packed; null where the reply has none. */
export function pack(report) {
  const tokens = report?.routing?.tokens;
  if (!Array.isArray(tokens) || tokens.length === 0) return null;
  let records = 0;
  let picks = 0;
  const modules = report.modules.map((module) => module.name);
  const numModules = modules.length;
  for (const token of tokens) {
    for (const site of sitesOf(token, numModules)) {
      records += 1;
      picks += site.picks.length;
      if (site.site !== EXPERTS) continue;
      for (const [at] of site.picks) while (modules.length <= at) modules.push(`expert ${modules.length - numModules}`);
    }
  }
  const trace = {
    modules,
    sites: [],
    layers: 0,
    tokens: tokens.map((token) => ({ id: token.token, text: String(token.text) })),
    recordStart: new Uint32Array(tokens.length + 1),
    layer: new Uint16Array(records),
    site: new Uint8Array(records),
    pickStart: new Uint32Array(records + 1),
    module: new Uint16Array(picks),
    weight: new Float32Array(picks),
  };
  fillArrays(trace, tokens, numModules);
  trace.bytes = records * 7 + picks * 6 + tokens.length * 60;
  return trace;
}

/** A token's sites, and the experts of the base as further sites; experts are numbered after the modules. */
function* sitesOf(token, numModules) {
  yield* token.sites;
  for (const { layer, experts } of token.experts ?? []) {
    yield { layer, site: EXPERTS, picks: experts.map(([number, weight]) => [numModules + number, weight]) };
  }
}

function fillArrays(trace, tokens, numModules) {
  const numbers = new Map();
  let record = 0;
  let pick = 0;
  tokens.forEach((token, at) => {
    for (const { layer, site, picks } of sitesOf(token, numModules)) {
      if (!numbers.has(site)) numbers.set(site, trace.sites.push(String(site)) - 1);
      trace.layer[record] = layer;
      trace.site[record] = numbers.get(site);
      trace.layers = Math.max(trace.layers, layer + 1);
      for (const [module, weight] of picks) {
        trace.module[pick] = module;
        trace.weight[pick] = weight;
        pick += 1;
      }
      record += 1;
      trace.pickStart[record] = pick;
    }
    trace.recordStart[at + 1] = record;
  });
}

function* recordsOf(trace, token) {
  for (let at = trace.recordStart[token]; at < trace.recordStart[token + 1]; at += 1) yield at;
}

function addPicks(trace, record, sums) {
  for (let at = trace.pickStart[record]; at < trace.pickStart[record + 1]; at += 1) {
    const name = trace.modules[trace.module[at]] ?? `module ${trace.module[at]}`;
    sums.set(name, (sums.get(name) ?? 0) + trace.weight[at]);
  }
}

/** Sums as a list, strongest first. Weights can be below zero, so size counts. */
function ranked(sums, divisor) {
  const list = [...sums].map(([name, weight]) => ({ name, weight: weight / divisor }));
  return list.sort((one, other) => Math.abs(other.weight) - Math.abs(one.weight) || (one.name < other.name ? -1 : 1));
}

/** The mean weight of each module over a token's sites, strongest first. */
export function tokenShares(trace, token) {
  return shares(trace, [token], "all");
}

/** The mean weight of each module over the sites of a group, over all tokens. */
export function groupShares(trace, group) {
  return shares(trace, trace.tokens.keys(), group);
}

function shares(trace, tokens, group) {
  const wanted = chosen(trace, group);
  const sums = new Map();
  let sites = 0;
  for (const token of tokens) {
    for (const record of recordsOf(trace, token)) {
      if (!wanted.has(trace.site[record])) continue;
      sites += 1;
      addPicks(trace, record, sums);
    }
  }
  return ranked(sums, Math.max(1, sites));
}

/** The sites of a group that a trace has, as numbers. */
function chosen(trace, group) {
  const wanted = GROUPS.find((one) => one.id === group)?.sites;
  return new Set(
    trace.sites
      .map((name, at) => ((wanted ? wanted.includes(name) : name !== EXPERTS) ? at : -1))
      .filter((at) => at >= 0),
  );
}

/** Per layer of a token: mean weights over the group's sites, strongest first; empty where nothing was picked. */
export function layerCells(trace, token, group) {
  const wanted = chosen(trace, group);
  const sums = Array.from({ length: trace.layers }, () => new Map());
  const counts = new Array(trace.layers).fill(0);
  for (const record of recordsOf(trace, token)) {
    if (!wanted.has(trace.site[record])) continue;
    counts[trace.layer[record]] += 1;
    addPicks(trace, record, sums[trace.layer[record]]);
  }
  return sums.map((sum, layer) => ranked(sum, Math.max(1, counts[layer])));
}

/** All picks of one cell, site by site. */
export function cellSites(trace, token, layer, group) {
  const wanted = chosen(trace, group);
  const found = [];
  for (const record of recordsOf(trace, token)) {
    if (trace.layer[record] !== layer || !wanted.has(trace.site[record])) continue;
    const sums = new Map();
    addPicks(trace, record, sums);
    found.push({ site: trace.sites[trace.site[record]], picks: ranked(sums, 1) });
  }
  return found;
}

/** How far the strongest stands before the next. */
export function margin(picks) {
  return picks.length === 0 ? 0 : Math.abs(picks[0].weight) - Math.abs(picks[1]?.weight ?? 0);
}

/** The overlap of two lists of shares, 0 to 1: the sum of the smaller share per module. */
export function overlap(first, second) {
  const total = (list) => list.reduce((sum, one) => sum + Math.abs(one.weight), 0);
  const [left, right] = [total(first), total(second)];
  if (left === 0 && right === 0) return 1;
  if (left === 0 || right === 0) return 0;
  const others = new Map(second.map((one) => [one.name, Math.abs(one.weight) / right]));
  return first.reduce((sum, one) => sum + Math.min(Math.abs(one.weight) / left, others.get(one.name) ?? 0), 0);
}

/** Agreement of two replies over the tokens that both begin with. */
export function agreement(first, second) {
  const shared = Math.min(first.tokens.length, second.tokens.length);
  const rows = [];
  for (let at = 0; at < shared && first.tokens[at].id === second.tokens[at].id; at += 1) {
    const [left, right] = [tokenShares(first, at), tokenShares(second, at)];
    rows.push({
      text: first.tokens[at].text,
      left: left[0],
      right: right[0],
      same: left[0]?.name === right[0]?.name,
      overlap: overlap(left, right),
    });
  }
  const mean = rows.reduce((sum, row) => sum + row.overlap, 0) / Math.max(1, rows.length);
  return { rows, mean, same: rows.filter((row) => row.same).length };
}

/** A reply's summary shares, largest first. */
export function summaryShares(report) {
  return ranked(new Map(Object.entries(report?.routing?.share ?? {})), 1);
}

// What each chart shows: its lines, the figure of a point that each draws, and how figures are written.

import { exitStep, milliseconds, number, percent } from "./helios.js";

const PERCENTILES = [
  ["p99", "--series-4", 1],
  ["p95", "--series-2", 1.5],
  ["p50", "--series-1", 2],
];

/** The charts from top to bottom. `lines` go from the topmost down, as their legends do. */
export function stripsOf({ layers, numLayers, floor }) {
  return [
    {
      id: "exits",
      title: "Exit layer",
      note: "share of tokens",
      height: 132,
      stacked: true,
      top: 1,
      format: (share) => percent(share, 0),
      lines: [...layers].reverse().map((layer) => exitLine(layer, numLayers)),
    },
    {
      id: "throughput",
      title: "Throughput",
      note: "tokens per second",
      empty: 0,
      format: number,
      lines: [
        { name: "tokens/s", color: "--series-1", fill: true, of: (point) => point.tokens_per_s },
        { name: "answers/s", hidden: true, of: (point) => point.requests / point.seconds },
      ],
    },
    latencies("ttft", "Time to first token", (point) => point.ttft_ms),
    latencies("itl", "Between tokens", (point) => point.itl_ms),
    {
      id: "queue",
      title: "Queue and batch",
      note: "",
      empty: 0,
      format: number,
      lines: [
        { name: "in a step", color: "--series-3", of: (point) => point.mean_batch },
        { name: "waiting", color: "--series-2", fill: true, of: (point) => point.mean_waiting },
      ],
    },
    {
      id: "kv",
      title: "KV use",
      note: "fullest shard",
      top: 1,
      empty: 0,
      format: (share) => percent(share, 0),
      lines: [{ name: "blocks in use", color: "--series-4", fill: true, of: (point) => point.kv_use }],
    },
    {
      id: "agreement",
      title: "Agreement",
      note: "95% interval",
      isSlow: true,
      top: 1,
      near: floor,
      format: (share) => percent(share),
      interval: [0, 2],
      lines: [
        { name: "at most", color: "--series-3", isEdge: true, of: (point) => point.agreement?.high },
        { name: "measured", color: "--series-3", width: 2, of: (point) => point.agreement?.agreement },
        { name: "at least", color: "--series-3", isEdge: true, of: (point) => point.agreement?.low },
        { name: "floor", color: "--bad", dash: [4, 3], always: floor, of: () => floor },
      ],
    },
    {
      id: "energy",
      title: "Energy",
      note: "watts",
      format: number,
      missing: "Not metered: no counter here, and no --watts.",
      lines: [
        { name: "watts", color: "--series-2", fill: true, of: (point) => (point.joules ? point.joules / point.seconds : null) },
        { name: "J/token", hidden: true, of: (point) => point.joules_per_token },
      ],
    },
  ];
}

function exitLine(layer, numLayers) {
  const of = (point) => (point.tokens ? (point.tokens_by_exit[layer] ?? 0) / point.tokens : null);
  if (layer === 0) return { name: "forced", color: "--strong-line", of };
  const name = layer >= numLayers ? `${layer}, full depth` : String(layer);
  return { name, color: `--exit-${exitStep(layer, numLayers)}`, of };
}

function latencies(id, title, of) {
  const lines = PERCENTILES.map(([name, color, width]) => ({ name, color, width, of: (point) => of(point)?.[name] }));
  return { id, title, note: "percentiles", format: milliseconds, lines };
}

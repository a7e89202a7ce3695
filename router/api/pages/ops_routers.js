// The routers of an overview: what they are called, and whose state counts.

/** The part of a router's name that differs between routers of one machine. */
export const routerName = (router) => router.slice(router.lastIndexOf("-") + 1);

/** The routers whose states count: those that are alive; without such all, as of their last words. */
export function currentOf(routers) {
  const alive = routers.filter((router) => router.is_alive);
  return alive.length ? alive : routers;
}

/** Their shards. */
export function currentShards({ routers, shards }) {
  const names = new Set(currentOf(routers).map(({ snapshot }) => snapshot.router));
  return shards.filter(({ router }) => names.has(router));
}

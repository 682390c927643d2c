// The page's side of service-worker.js: everything is downloaded once, and then it works without a network.

/**
 * Resolves when this page is served by its service worker, or when it turns out that it will not be.
 * @param {(done: number, total: number) => void} progress bytes
 * @param {(activate: () => void) => void} renewed called when a newer build has been downloaded; `activate` reloads every tab with it
 * @returns {Promise<string | null>} why there is none; null: the page works offline
 */
export async function serveOffline(progress, renewed) {
  const { serviceWorker } = navigator;
  if (!serviceWorker) return 'this browser has no service workers here';
  const first = !serviceWorker.controller;
  serviceWorker.addEventListener('message', ({ data }) => data.total && first && progress(data.done, data.total));
  let registration;
  try {
    registration = await serviceWorker.register('service-worker.js', { updateViaCache: 'none' });
  } catch (error) {
    return first ? `the service worker did not start (${error.message})` : null; // without a network there is nothing newer
  }
  let reloading = false;
  const offer = () => renewed(() => {
    reloading = true;
    registration.waiting?.postMessage('activate');
  });
  serviceWorker.addEventListener('controllerchange', () => reloading && location.reload());
  registration.addEventListener('updatefound', () => {
    const { installing } = registration;
    installing.addEventListener('statechange', () => installing.state === 'installed' && serviceWorker.controller && offer());
  });
  if (registration.waiting && serviceWorker.controller) offer();
  if (!first || serviceWorker.controller) return null;
  return new Promise(resolve => {
    serviceWorker.addEventListener('controllerchange', () => resolve(null), { once: true });
    const worker = registration.installing ?? registration.waiting ?? registration.active;
    if (worker?.state === 'activated') worker.postMessage('claim'); // a forced reload goes past it
    worker?.addEventListener('statechange', () => worker.state === 'redundant' && resolve('the files could not all be downloaded'));
  });
}

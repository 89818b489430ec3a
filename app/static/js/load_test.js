// The live metrics of load tests: the parts of the page follow the server by themselves (live.js),
// and the charts in them follow those parts. The same for two runs side by side.

import { startCharts } from '../src/charts.js';

startCharts();

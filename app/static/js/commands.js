// Lists that are filtered by time: commands, and the events of the audit trail.

import { startZones } from './zones.js';

startZones();

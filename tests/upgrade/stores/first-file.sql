pragma application_id = 1129730631;
pragma user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE f_agent ("lease" blob not null, "id" text not null, v text not null, r integer not null, primary key ("lease", "id")) without rowid;
CREATE TABLE f_dead ("lease" blob not null, v text not null, r integer not null, primary key ("lease")) without rowid;
INSERT INTO "f_dead" VALUES(X'1A676CD77D997E242A574A57DB85D2A7','',21);
CREATE TABLE f_dedup ("pool" text not null, "key" text not null, v text not null, r integer not null, primary key ("pool", "key")) without rowid;
INSERT INTO "f_dedup" VALUES('docs','d','["01a227ca09637db280007bc01c2ad03c","1564972bd2764ceb1c2dc375"]',16);
CREATE TABLE f_done ("pool" text not null, "state" text not null, "until" integer not null, "id" blob not null, v text not null, r integer not null, primary key ("pool", "state", "until", "id")) without rowid;
INSERT INTO "f_done" VALUES('docs','CANCELLED',1796568681798641,X'01A227CA093276628000177D2526C1D8','',12);
INSERT INTO "f_done" VALUES('docs','COMPLETED',1796050281746509,X'01A227CA08E0739580008D16CFD96189','',7);
INSERT INTO "f_done" VALUES('docs','FAILED',1796568681758505,X'01A227CA08E073958001AAC7AEE3C738','',8);
CREATE TABLE f_epoch ("only" integer not null, v text not null, r integer not null, primary key ("only")) without rowid;
INSERT INTO "f_epoch" VALUES(0,'"a140ca51bab3e00550fdc5add49e0c28"',1);
CREATE TABLE f_expiry ("id" blob not null, v text not null, r integer not null, primary key ("id")) without rowid;
CREATE TABLE f_held ("lease" blob not null, "rank" integer not null, "id" blob not null, "nonce" blob not null, v text not null, r integer not null, primary key ("lease", "rank", "id", "nonce")) without rowid;
INSERT INTO "f_held" VALUES(X'1A676CD77D997E242A574A57DB85D2A7',1795963881696224,X'01A227CA08E0739580039E6DF394964C',X'E4484B0AF26F112ABE291E65908D7163','1795963881731607',6);
CREATE TABLE f_joined ("lease" blob not null, "pool" text not null, "agent" text not null, v text not null, r integer not null, primary key ("lease", "pool", "agent")) without rowid;
CREATE TABLE f_key ("pool" text not null, "key" text not null, v text not null, r integer not null, primary key ("pool", "key")) without rowid;
INSERT INTO "f_key" VALUES('docs','k','{"active":"01a227ca09747b7c8000303e3bbab396","next":3}',20);
CREATE TABLE f_lane ("pool" text not null, "lane" blob not null, v text not null, r integer not null, primary key ("pool", "lane")) without rowid;
INSERT INTO "f_lane" VALUES('docs',X'1A72E9A859402306F7D06100A0B3F7FC','{"pool":"docs","type":"once"}',15);
INSERT INTO "f_lane" VALUES('docs',X'1B719E646E3D144438C8C803AD7A8B25','{"pool":"docs","type":"later"}',13);
INSERT INTO "f_lane" VALUES('docs',X'1D987DFB4CE99853E35D678FBB772992','{"pool":"docs","type":"ordered"}',17);
INSERT INTO "f_lane" VALUES('docs',X'207C595871A31EAFF80194AD958945C8','{"pool":"docs"}',3);
INSERT INTO "f_lane" VALUES('docs',X'7B758FEF9ED77704D8B544CCFB1618AA','{"pool":"docs","type":"unwanted"}',10);
CREATE TABLE f_later ("due" integer not null, "id" blob not null, v text not null, r integer not null, primary key ("due", "id")) without rowid;
INSERT INTO "f_later" VALUES(1795963881897407,X'01A227CA08E073958002E3E76B3B54A9','"207c595871a31eaff80194ad958945c8"',9);
INSERT INTO "f_later" VALUES(3523963881802763,X'01A227CA094A7CBC8000A3AB110DE742','"1b719e646e3d144438c8c803ad7a8b25"',14);
CREATE TABLE f_lease ("id" blob not null, v text not null, r integer not null, primary key ("id")) without rowid;
CREATE TABLE f_limit ("deadline" integer not null, "id" blob not null, v text not null, r integer not null, primary key ("deadline", "id")) without rowid;
INSERT INTO "f_limit" VALUES(3524050281802763,X'01A227CA094A7CBC8000A3AB110DE742','',14);
CREATE TABLE f_member ("pool" text not null, "agent" text not null, v text not null, r integer not null, primary key ("pool", "agent")) without rowid;
CREATE TABLE f_notice ("lease" blob not null, "id" blob not null, v text not null, r integer not null, primary key ("lease", "id")) without rowid;
CREATE TABLE f_order ("pool" text not null, "key" text not null, "number" integer not null, v text not null, r integer not null, primary key ("pool", "key", "number")) without rowid;
INSERT INTO "f_order" VALUES('docs','k',1,'"01a227ca097f7e2080005713a2fad374"',19);
INSERT INTO "f_order" VALUES('docs','k',2,'"01a227ca098e7b708000c74997867218"',20);
CREATE TABLE f_pool ("id" text not null, v text not null, r integer not null, primary key ("id")) without rowid;
INSERT INTO "f_pool" VALUES('docs','{"admission":"open","allow":[],"dedup_window_sec":86400.0,"id":"docs","is_paused":false,"keep_completed_sec":86400.0,"keep_failed_sec":604800.0,"priority_step_sec":3600.0,"require_durability":"","secret_hash":""}',2);
CREATE TABLE f_ready ("lane" blob not null, "rank" integer not null, "id" blob not null, v text not null, r integer not null, primary key ("lane", "rank", "id")) without rowid;
INSERT INTO "f_ready" VALUES(X'1A72E9A859402306F7D06100A0B3F7FC',1795963881827856,X'01A227CA09637DB280007BC01C2AD03C','',16);
INSERT INTO "f_ready" VALUES(X'1D987DFB4CE99853E35D678FBB772992',1795963881844718,X'01A227CA09747B7C8000303E3BBAB396','',18);
CREATE TABLE f_state ("id" blob not null, v text not null, r integer not null, primary key ("id")) without rowid;
INSERT INTO "f_state" VALUES(X'01A227CA08E0739580008D16CFD96189','{"state":"COMPLETED","attempts":1,"due":0,"rank":0,"nonce":"e4484b0af26f112abe291e65908d7163","token":6,"by":"agent","result":{"words":3,"raw":{"$bytes":"AP8="}},"history":[[1795963881746509,"completed","agent","",6,1795963881731607]],"finished":1795963881746509}',7);
INSERT INTO "f_state" VALUES(X'01A227CA08E073958001AAC7AEE3C738','{"state":"FAILED","attempts":1,"due":0,"rank":0,"nonce":"e4484b0af26f112abe291e65908d7163","digest":"87aa0c344aef6022","token":6,"by":"agent","result":null,"error":"for good","history":[[1795963881758505,"failed","agent","for good",6,1795963881731607]],"finished":1795963881758505}',8);
INSERT INTO "f_state" VALUES(X'01A227CA08E073958002E3E76B3B54A9','{"state":"PENDING","attempts":1,"due":1795963881897407,"rank":1795963881897407,"nonce":"e4484b0af26f112abe291e65908d7163","digest":"865df3ad0df85513","token":6,"by":"agent","result":null,"error":"once","history":[[1795963881766509,"failed","agent","once",6,1795963881731607]]}',9);
INSERT INTO "f_state" VALUES(X'01A227CA093276628000177D2526C1D8','{"state":"CANCELLED","attempts":0,"due":0,"rank":0,"digest":"2345b87634523a5f","result":null,"history":[[1795963881798641,"cancelled","","",0,0]],"finished":1795963881798641}',12);
CREATE TABLE f_task ("id" blob not null, v text not null, r integer not null, primary key ("id")) without rowid;
INSERT INTO "f_task" VALUES(X'01A227CA08E0739580008D16CFD96189','{"pool":"docs","lane":"207c595871a31eaff80194ad958945c8","due":1795963881696224,"rank":1795963881696224,"submitted":1795963881696224,"inputs":{"n":0},"origin":"done.cd3b3d40c2435744"}',4);
INSERT INTO "f_task" VALUES(X'01A227CA08E073958001AAC7AEE3C738','{"pool":"docs","lane":"207c595871a31eaff80194ad958945c8","due":1795963881696224,"rank":1795963881696224,"submitted":1795963881696224,"inputs":{"n":1},"origin":"done.cd3b3d40c2435744"}',4);
INSERT INTO "f_task" VALUES(X'01A227CA08E073958002E3E76B3B54A9','{"pool":"docs","lane":"207c595871a31eaff80194ad958945c8","due":1795963881696224,"rank":1795963881696224,"submitted":1795963881696224,"inputs":{"n":2},"origin":"done.cd3b3d40c2435744"}',4);
INSERT INTO "f_task" VALUES(X'01A227CA08E0739580039E6DF394964C','{"pool":"docs","lane":"207c595871a31eaff80194ad958945c8","due":1795963881696224,"rank":1795963881696224,"submitted":1795963881696224,"inputs":{"n":3},"origin":"done.cd3b3d40c2435744"}',4);
INSERT INTO "f_task" VALUES(X'01A227CA093276628000177D2526C1D8','{"pool":"docs","lane":"7b758fef9ed77704d8b544ccfb1618aa","due":1795963881778399,"rank":1795963881778399,"submitted":1795963881778399,"type":"unwanted","inputs":{},"origin":"done.cd3b3d40c2435744"}',11);
INSERT INTO "f_task" VALUES(X'01A227CA094A7CBC8000A3AB110DE742','{"pool":"docs","lane":"1b719e646e3d144438c8c803ad7a8b25","due":3523963881802763,"rank":3523963881802763,"submitted":1795963881802796,"type":"later","inputs":{},"deadline":3524050281802763,"origin":"done.cd3b3d40c2435744"}',14);
INSERT INTO "f_task" VALUES(X'01A227CA09637DB280007BC01C2AD03C','{"pool":"docs","lane":"1a72e9a859402306f7d06100a0b3f7fc","due":1795963881827856,"rank":1795963881827856,"submitted":1795963881827856,"digest":"1564972bd2764ceb1c2dc375","type":"once","inputs":{"text":"é"},"dedup_key":"d","origin":"done.cd3b3d40c2435744"}',16);
INSERT INTO "f_task" VALUES(X'01A227CA09747B7C8000303E3BBAB396','{"pool":"docs","lane":"1d987dfb4ce99853e35d678fbb772992","due":1795963881844718,"rank":1795963881844718,"submitted":1795963881844718,"type":"ordered","inputs":{"n":0},"ordering_key":"k","origin":"done.cd3b3d40c2435744"}',18);
INSERT INTO "f_task" VALUES(X'01A227CA097F7E2080005713A2FAD374','{"pool":"docs","lane":"1d987dfb4ce99853e35d678fbb772992","due":1795963881855883,"rank":1795963881855883,"submitted":1795963881855883,"type":"ordered","inputs":{"n":1},"ordering_key":"k","number":1,"origin":"done.cd3b3d40c2435744"}',19);
INSERT INTO "f_task" VALUES(X'01A227CA098E7B708000C74997867218','{"pool":"docs","lane":"1d987dfb4ce99853e35d678fbb772992","due":1795963881870715,"rank":1795963881870715,"submitted":1795963881870715,"type":"ordered","inputs":{"n":2},"ordering_key":"k","number":2,"origin":"done.cd3b3d40c2435744"}',20);
CREATE TABLE meta (name text primary key, value) without rowid;
INSERT INTO "meta" VALUES('boot','3c1566a9-1023-4647-8477-1741f4afc5ea');
INSERT INTO "meta" VALUES('offset',1795957729746016);
INSERT INTO "meta" VALUES('revision',21);
CREATE VIEW converge_tasks as
select lower(hex(t.id)) as id, coalesce(p.place, 'waiting for its ordering key') as place, p.due, p.lease, p.until,
  t.v as task, s.v as state
from f_task t
left join f_state s on s.id = t.id
left join (
  select id, 'ready' as place, null as due, null as lease, null as until from f_ready
  union all select id, 'later', due, null, null from f_later
  union all select id, 'held', null, lower(hex(lease)), null from f_held
  union all select id, 'done', null, null, until from f_done
) p on p.id = t.id;
COMMIT;

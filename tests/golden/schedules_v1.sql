PRAGMA application_id = 1282372201;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE about (n_best INTEGER NOT NULL);
INSERT INTO "about" VALUES(2);
CREATE TABLE item (
        target_key TEXT NOT NULL, workload_key TEXT NOT NULL, build TEXT NOT NULL,
        family TEXT NOT NULL, dialect TEXT NOT NULL, name TEXT NOT NULL, networks TEXT NOT NULL,
        target TEXT NOT NULL, workload TEXT NOT NULL, records TEXT NOT NULL,
        PRIMARY KEY (target_key, workload_key, build));
INSERT INTO "item" VALUES('llvm-mcpu_core-avx2','6f90d230a8e5e1be07581244d04750e0','tvm 0.10.0','llvm-x86','autotvm','conv2d_NCHWc.x86(1x32x56x56, 64x32x3x3, s1, p1)','["resnet"]','{"kind":"llvm","mcpu":"core-avx2"}','{"dialect":"autotvm","name":"conv2d_NCHWc.x86(1x32x56x56, 64x32x3x3, s1, p1)","key":"6f90d230a8e5e1be07581244d04750e0","identity":["conv2d_NCHWc.x86",[["TENSOR",[1,32,56,56],"float32"],["TENSOR",[64,32,3,3],"float32"],[1,1],[1,1,1,1],[1,1],"NCHW","NCHW","float32"]],"definition":null,"flop":115605504.0,"weight":1.0,"networks":["resnet"]}','[{"key":"ca450410c73a256ddd4a05b385ce3607","latency_s":0.001,"latencies_s":[0.001],"schedule":[["tile_ic","sp",[-1,16]],["tile_oc","sp",[-1,32]],["tile_ow","sp",[-1,8]],["unroll_kw","ot",true]],"network":"resnet","log":"logs/x","timestamp_s":1600000000.0},{"key":"7259d19c3685e72fb373116e10109d7c","latency_s":0.002,"latencies_s":[0.002],"schedule":[["tile_ic","sp",[-1,16]],["tile_oc","sp",[-1,32]],["tile_ow","sp",[-1,4]],["unroll_kw","ot",true]],"network":"resnet","log":"logs/x","timestamp_s":1600000000.0}]');
INSERT INTO "item" VALUES('llvm-mcpu_core-avx2','8f7a63770227de5c8a9716ff80dbb134','tvm 0.27.0.post1','llvm-x86','metaschedule','dense','[]','{"kind":"llvm","mcpu":"core-avx2"}','{"dialect":"metaschedule","name":"dense","key":"8f7a63770227de5c8a9716ff80dbb134","identity":["0123456789abcdef","tvm"],"definition":"module","flop":2000000.0,"weight":1.0,"networks":[]}','[{"key":"2bdaf98f6c93d149c0d72edf2031490a","latency_s":0.0002,"latencies_s":[0.0001,0.0002,0.0003],"schedule":[1,[2]],"network":null,"log":null,"timestamp_s":0.0}]');
CREATE INDEX item_workload ON item (workload_key, family);
COMMIT;
